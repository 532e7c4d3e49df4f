"""The toolchain of one streamed request: one owner, from the first round's request to the stage's last event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from proxy.errors import GatewayError, InternalError, UpstreamInvalid, UpstreamTimeout
from proxy.protocols.event_data import decoded
from proxy.streams.stream import Stream
from proxy.toolchain.calls import RoundReader, Said, chunk_of
from proxy.toolchain.catalogue import Catalogue
from proxy.toolchain.loop import Ask, Rounds
from proxy.toolchain.results import CallResult
from proxy.toolchain.rounds import Exchanges, RoundAnswer, RoundRefused, go_through, refusal
from proxy.toolchain.toolbox import Toolbox, ToolRunner
from proxy.wire.sse import Event, encode
from proxy.wire.stages import CHAT_CHUNK, TOOL_CHUNK

logger = logging.getLogger("penstock")


class Stage(Protocol):
    """Who passes it all on: a stage's stream, or one chat completion's."""

    over: bool

    def follow(
        self,
        inner: Stream,
        kind: str,
        ended: Callable[[GatewayError | None], None],
        see: Callable[[Event], None] | None = None,
    ) -> None: ...

    def summary(self, round: int, calls: list[dict[str, object]]) -> None: ...

    def done(self) -> None: ...

    def stop_for(self, error: GatewayError | None) -> None: ...


class Request(Struct, frozen=True):
    """What is asked for. `base`: the first chat completion's members, less its tools, `stream: true` among them.

    `synthesis`: the members the synthesis pass changes in it; None where there is to be none. `total_s`: for everything
    (None: for ever).
    """

    base: Mapping[str, object]
    synthesis: Mapping[str, object] | None
    max_rounds: int
    parallel: int
    total_s: float | None = None

    def rounds(self, catalogue: Catalogue) -> Rounds:
        return Rounds(self.base, catalogue.functions, max_rounds=self.max_rounds, synthesis=self.synthesis)


class ToolchainRun:
    """Runs a request into `stage`. `rounds` and `tool_calls` count for its record.

    The owner's duty: `begin`, then `close`, however `begin` came out.
    """

    def __init__(self, request: Request, catalogue: Catalogue, tools: ToolRunner, exchanges: Exchanges, stage: Stage):
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._deadline = None if request.total_s is None else loop.time() + request.total_s
        self._rounds = request.rounds(catalogue)
        self._toolbox = Toolbox(catalogue, tools, parallel=request.parallel)
        self._exchanges = exchanges
        self._stage = stage
        self._opened: Stream | None = None  # the first round's, until it is passed on
        self._answer: RoundAnswer | None = None  # the one under way
        self._task: asyncio.Task[None] | None = None

    @property
    def rounds(self) -> int:
        return self._rounds.number

    @property
    def tool_calls(self) -> int:
        return self._rounds.calls

    async def begin(self) -> None:
        """Open the first round; from then on everything goes into the stage.

        Raises GatewayError or RoundRefused while nothing has been passed on: either can still have a status.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                self._opened = await self._open(self._rounds.first())
        except TimeoutError:
            raise _too_long() from None
        self._task = self._loop.create_task(self._go_on())

    def stop(self) -> None:
        """Stop what still runs: the upstream's connection is closed at once, and the calls are cancelled, which `close`
        waits for."""
        if self._task is not None:
            self._task.cancel()
        self._close_answer()

    async def close(self) -> None:
        """Stop what still runs, and wait until it has ended."""
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _go_on(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await go_through(self._rounds, self._ask, self._toolbox, self._summarise)
            self._stage.done()
        except _StageOver:
            pass
        except RoundRefused as refused:
            self._exchanges.close(refused.answer)
            self._stage.stop_for(refusal(refused.answer))
        except GatewayError as error:
            self._stage.stop_for(error)
        except TimeoutError:
            self._stage.stop_for(_too_long())
        except Exception:
            logger.exception("the tool loop failed")
            self._stage.stop_for(InternalError("The gateway failed while it ran the tools."))

    async def _ask(self, ask: Ask) -> Said:
        self._require_listener()
        opened, self._opened = self._opened, None
        stream = opened or await self._open(ask)
        try:
            self._require_listener()
            return await self._pass_on(stream, ask)
        finally:
            self._close_answer()

    async def _open(self, ask: Ask) -> Stream:
        answer = self._answer = await self._exchanges.ask(ask)
        try:
            return answer.stream if answer.events else _as_stream(answer)
        except BaseException:
            self._close_answer()
            raise

    async def _pass_on(self, stream: Stream, ask: Ask) -> Said:
        reader = RoundReader()
        ended: asyncio.Future[GatewayError | None] = self._loop.create_future()

        def end(error: GatewayError | None) -> None:
            if not ended.done():
                ended.set_result(error)

        if ask.synthesis:
            self._stage.follow(stream, TOOL_CHUNK, end)
        else:
            self._stage.follow(stream, CHAT_CHUNK, end, reader.see)
        error = await ended
        if error is not None:
            raise error
        return reader.said(self._rounds.number)

    def _summarise(self, number: int, results: list[CallResult]) -> None:
        self._stage.summary(number, [result.summary for result in results])

    def _require_listener(self) -> None:
        """Where the stage is over already (a drain's deadline), nothing more is asked."""
        if self._stage.over:
            raise _StageOver

    def _close_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._exchanges.close(answer)


class _StageOver(Exception):
    """Nobody listens any more."""


def _too_long() -> UpstreamTimeout:
    return UpstreamTimeout("The request took longer than the route's timeouts.total.")


def _as_stream(answer: RoundAnswer) -> Stream:
    """An answer in one piece, though a stream was asked for, as one."""
    completion = decoded(answer.body) if answer.body else None
    if completion is None:
        raise UpstreamInvalid("The model server answered with neither an event stream nor a JSON object.")
    data = chunk_of(completion)
    wire = encode(data)
    stream = Stream()
    stream.publish([Event(wire, wire, data)])
    stream.end()
    return stream
