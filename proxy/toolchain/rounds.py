"""How a toolchain asks for one round's answer, and goes from round to round, whoever listens to it.

What the answers are passed on as is `run`'s (a stream) and `collected`'s (one piece).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.errors import UpstreamError, UpstreamInvalid
from proxy.protocols.event_data import compact
from proxy.protocols.failure import Failure, answer_error
from proxy.streams.stream import Stream
from proxy.toolchain.calls import Said
from proxy.toolchain.loop import Ask, Over, Rounds, Step
from proxy.toolchain.results import CallResult
from proxy.toolchain.toolbox import Toolbox


class RoundAnswer(Protocol):
    """An answer at its commit point, as the relay gives it."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes | None: ...
    @property
    def events(self) -> bool: ...
    @property
    def stream(self) -> Stream: ...
    @property
    def failure(self) -> Failure | None: ...


class RoundRefused(Exception):
    """The upstream refused a request before anything was passed on: `answer` can be given to the client as it is.

    Who catches it closes the answer.
    """

    def __init__(self, answer: RoundAnswer) -> None:
        super().__init__(f"refused with status {answer.status}")
        self.answer = answer


class Exchanges:
    """The way to the model: `open` sends a body and gives its answer (or raises GatewayError), `close` ends it.

    One at a time. An answer that is no event stream has all of its body.
    """

    def __init__(self, open: Callable[[bytes], Awaitable[RoundAnswer]], close: Callable[[RoundAnswer], None]) -> None:
        self._open = open
        self._close = close

    async def ask(self, ask: Ask) -> RoundAnswer:
        """An answer with something in it. Raises GatewayError, or RoundRefused. The caller's duty: `close` it."""
        answer = await self._open(compact(ask.body))
        if answer.failure is not None or answer.status >= 400:
            raise RoundRefused(answer)
        return answer

    def close(self, answer: RoundAnswer) -> None:
        self._close(answer)


Asked = Callable[[Ask], Awaitable[Said]]
Summarised = Callable[[int, list[CallResult]], None]


async def go_through(rounds: Rounds, ask: Asked, toolbox: Toolbox, summarised: Summarised) -> Over:
    """All rounds: `ask` gets each one's answer, `summarised` hears of its number and its calls' results."""
    step: Step = rounds.first()
    while not isinstance(step, Over):
        if isinstance(step, Ask):
            said = await ask(step)
            step = rounds.synthesised() if step.synthesis else rounds.answered(said)
        else:
            number, results = rounds.number, await toolbox.run(step.calls)
            summarised(number, results)
            step = rounds.returned(results)
    return step


def refusal(answer: RoundAnswer) -> UpstreamError:
    """What a refusal of a later round is told as, where there is no status any more."""
    failure = answer.failure or answer_error(answer.body or b"")
    if failure is not None:
        return UpstreamError(failure.message, code="upstream_error")
    return UpstreamInvalid(f"The model server answered with status {answer.status} to the tools' results.")
