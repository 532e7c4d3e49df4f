"""The exchanges of one request that takes several: each a round of the toolchain's, all of them under way as one.

They go through the relay, and the request's one record has their sums. Which round comes next is the toolchain's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from proxy.admission import OnQueued, Stay
from proxy.downstream.whole import whole_body
from proxy.errors import GatewayError
from proxy.protocols import endpoints
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import Phase, RequestRecord
from proxy.telemetry.usage import usage_unanswered
from proxy.toolchain.rounds import Exchanges, RoundAnswer

T = TypeVar("T")


class Counted(Protocol):
    """How far a toolchain has come."""

    @property
    def rounds(self) -> int: ...
    @property
    def tool_calls(self) -> int: ...


class ToolRounds:
    """One request's exchanges, each sent as `request` is, with a body of its own. `first` is the first one's answer.

    `interruption`: the error that the gateway ended it with (a drain's end). The owner's duty: `close`.
    """

    def __init__(
        self,
        relay: Relay,
        request: ProxyRequest,
        route: Route,
        record: RequestRecord,
        longest_answer_bytes: int,
        on_closed: Callable[[], None] | None = None,
        on_queued: OnQueued | None = None,
    ) -> None:
        self._on_queued = on_queued
        self._on_closed = on_closed
        self._relay = relay
        self._request = request
        self._route = route
        self._record = record
        self._longest_answer_bytes = longest_answer_bytes
        self._loop = asyncio.get_running_loop()
        self._committed_to: Stream | None = None
        self._patience = asyncio.timeout(None)
        self._answer: Answer | None = None
        self._round: RequestRecord | None = None
        self._asked = request.body
        self._stay: Stay | None = None
        self.first: Answer | None = None
        self.interruption: GatewayError | None = None
        self.exchanges = Exchanges(self._open, self._close)
        relay.enter(self, route)

    async def before_commit(self, opening: Awaitable[T]) -> T:
        """What `opening` gives. Raises what the gateway interrupts it with meanwhile."""
        try:
            async with self._patience:
                return await opening
        except TimeoutError:
            if self.interruption is None:
                raise
            raise self.interruption from None

    def commit(self, stream: Stream) -> None:
        """From here on the client hears of everything through `stream`, of an interruption too."""
        self._committed_to = stream

    def interrupt(self, error: GatewayError) -> None:
        """The gateway ends it, wherever it is."""
        if self._committed_to is not None and self._committed_to.ended:
            return
        if self.interruption is None:
            self.interruption = error
            if self._committed_to is not None:
                self._committed_to.interrupt(error)
            else:
                self._patience.reschedule(self._loop.time())

    def current(self) -> Answer:
        """The answer of the exchange that is under way."""
        assert self._answer is not None
        return self._answer

    def close(self, counted: Counted | None) -> None:
        """The request is over: what still runs upstream is stopped, and the record has the figures of all rounds."""
        if counted is not None:
            self._record.rounds, self._record.tool_calls = counted.rounds, counted.tool_calls
        if self._answer is not None:
            self._close(self._answer)
        elif self._round is not None:
            self._give_up(self._round)
        if self._stay is not None:
            self._stay.end((self._record.tokens_in or 0) + (self._record.tokens_out or 0))
        self._relay.leave(self)
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed()

    # ---- one exchange ----

    async def _open(self, body: bytes) -> Answer:
        request = replace(self._request, body=RequestBody.parse(body))
        record = self._round = self._record if self.first is None else self._another_record()
        self._asked = request.body
        try:
            if self._stay is None:
                self._stay = self._relay.take_on(request, record)
            on_queued = self._on_queued if self.first is None else None  # nobody waits for an answer that has begun
            answer = self._answer = await self._relay.open_round(request, self._route, record, self._stay, on_queued)
            if not answer.events:
                answer = self._answer = replace(answer, body=await whole_body(answer, self._longest_answer_bytes))
        except BaseException:
            self._settle()
            raise
        self.first = self.first or answer
        return answer

    def _close(self, answer: RoundAnswer) -> None:
        self._settle()

    def _settle(self) -> None:
        """The exchange is over, however far it came. Once."""
        answer, self._answer = self._answer, None
        record, self._round = self._round, None
        if record is None:
            return
        if answer is not None:
            self._relay.close_round(answer, record)
        if record is not self._record:
            self._record.add_round(record)

    def _give_up(self, record: RequestRecord) -> None:
        """Nobody waits any more for what was asked; whoever opens it is told soon, but too late for the record."""
        if record.phase not in (Phase.BODY, Phase.QUEUE, Phase.CONNECT):  # a replica has the prompt
            usage = usage_unanswered(endpoints.for_path(self._request.path), self._asked)
            record.tokens_in, record.tokens_out, record.tokens_estimated = usage
        self._settle()

    def _another_record(self) -> RequestRecord:
        first = self._record
        return RequestRecord(first.request_id, first.method, first.path, self._loop.time())
