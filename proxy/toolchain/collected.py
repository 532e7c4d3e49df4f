"""The toolchain of one request for an answer in one piece: the same rounds, collected."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from proxy.errors import GatewayError, UpstreamError, UpstreamInvalid, UpstreamTimeout
from proxy.protocols.event_data import decoded
from proxy.protocols.failure import answer_error
from proxy.toolchain.calls import JsonObject, Said, said_in
from proxy.toolchain.catalogue import Catalogue
from proxy.toolchain.loop import Ask
from proxy.toolchain.results import CallResult
from proxy.toolchain.rounds import Exchanges, RoundAnswer, go_through
from proxy.toolchain.run import Request
from proxy.toolchain.toolbox import Toolbox, ToolRunner
from proxy.wire.sse import Event

WHOLE_BYTES = 16 << 20
"""The longest answer that is collected."""


@dataclass(slots=True, eq=False)
class Collected:
    """`completions` are the rounds' answers, each a JSON object in bytes as the upstream gave it; `summaries` one for
    each round that ran tools: `{"round","calls"}`; `synthesis` the last pass's answer, if there was one.

    `cut`: the model would have called more tools, `max_rounds` ended it.
    """

    completions: list[bytes] = field(default_factory=list)
    summaries: list[JsonObject] = field(default_factory=list)
    synthesis: bytes | None = None
    cut: bool = False

    @property
    def completion(self) -> bytes:
        """The last round's."""
        return self.completions[-1]


class ToolchainCollection:
    """Collects a request whose `base` says `stream: false`. `rounds` and `tool_calls` count for its record."""

    def __init__(self, request: Request, catalogue: Catalogue, tools: ToolRunner, exchanges: Exchanges) -> None:
        self._total_s = request.total_s
        self._rounds = request.rounds(catalogue)
        self._toolbox = Toolbox(catalogue, tools, parallel=request.parallel)
        self._exchanges = exchanges
        self._collected = Collected()

    @property
    def rounds(self) -> int:
        return self._rounds.number

    @property
    def tool_calls(self) -> int:
        return self._rounds.calls

    async def collect(self) -> Collected:
        """Everything. Raises GatewayError or RoundRefused, of whichever round; cancelling stops what runs."""
        try:
            async with asyncio.timeout(self._total_s):
                over = await go_through(self._rounds, self._ask, self._toolbox, self._summarise)
        except TimeoutError:
            raise UpstreamTimeout("The request took longer than the route's timeouts.total.") from None
        self._collected.cut = over.cut
        return self._collected

    async def _ask(self, ask: Ask) -> Said:
        answer = await self._exchanges.ask(ask)
        try:
            body = await _whole(answer)
        finally:
            self._exchanges.close(answer)
        if (failure := answer_error(body)) is not None:
            raise UpstreamError(failure.message)
        completion = decoded(body)
        if completion is None:
            raise UpstreamInvalid("The model server's answer is not a JSON object.")
        if ask.synthesis:
            self._collected.synthesis = body
        else:
            self._collected.completions.append(body)
        return said_in(completion, self._rounds.number)

    def _summarise(self, number: int, results: list[CallResult]) -> None:
        self._collected.summaries.append({"round": number, "calls": [result.summary for result in results]})


async def _whole(answer: RoundAnswer) -> bytes:
    """The body, also of an answer so long that the upstream's side lets it flow."""
    if answer.body is not None:
        return answer.body
    if answer.events:
        raise UpstreamInvalid("The model server answered with an event stream that was not asked for.")
    flow = _Flow()
    answer.stream.attach(flow)
    return await flow.whole


class _Flow:
    """A listener that keeps what flows."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pieces: list[bytes] = []
        self._bytes = 0

    def write(self, events: list[Event]) -> bool:
        self._pieces += [event.data for event in events]
        self._bytes += sum(len(event.data) for event in events)
        if self._bytes > WHOLE_BYTES and not self.whole.done():
            self.whole.set_exception(UpstreamInvalid(f"The model server's answer is larger than {WHOLE_BYTES} bytes."))
        return self._bytes > WHOLE_BYTES

    def end(self, error: GatewayError | None) -> None:
        if self.whole.done():
            return
        if error is not None:
            self.whole.set_exception(error)
        else:
            self.whole.set_result(b"".join(self._pieces))
