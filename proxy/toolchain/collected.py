"""The toolchain of one request for an answer in one piece: the same rounds, collected."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from proxy.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout
from proxy.protocols.event_data import decoded
from proxy.protocols.failure import answer_error
from proxy.toolchain.calls import JsonObject, Said, said_in
from proxy.toolchain.catalogue import Catalogue
from proxy.toolchain.loop import Ask
from proxy.toolchain.results import CallResult
from proxy.toolchain.rounds import Exchanges, go_through
from proxy.toolchain.run import Request
from proxy.toolchain.toolbox import Toolbox, ToolRunner


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
    """Collects a request whose `base` says `stream: false`: its exchanges' answers have all of their bodies.

    `rounds` and `tool_calls` count for its record.
    """

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
        body = answer.body
        self._exchanges.close(answer)
        if body is None:
            raise UpstreamInvalid("The model server answered with an event stream that was not asked for.")
        if (failure := answer_error(body)) is not None:
            raise UpstreamError(failure.message, code="upstream_error")
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
