"""A hedge: a second replica is asked for the same answer when the first has given nothing for a while.

Whoever commits first answers. The other is closed in the same call, before it can say anything, and nothing of it is
held against its replica. Who is asked second, and what is tried when both fail, dispatch decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from proxy.errors import GatewayError
from proxy.routing.failure_kind import FailureKind
from proxy.routing.retry import RULES
from proxy.streams.stream import Source, Stream


class Runner(Source, Protocol):
    """An exchange that may be one of two."""

    def outrun(self) -> None:
        """Another one answers: close."""


class Race:
    """Up to two exchanges for one stream: its source until one of them has `won`. `hedged`: there were two."""

    __slots__ = ("_runners", "_stream", "hedged", "won")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._runners: list[Runner] = []
        self.won = False
        self.hedged = False

    def enter(self, runner: Runner) -> None:
        """It sends its request now. Raises what the stream was interrupted with meanwhile; or `CancelledError` where
        the race is over: its task just has not heard of that yet."""
        if self.won:
            raise asyncio.CancelledError
        self._stream.flow_from(self)
        self._runners.append(runner)

    def won_by(self, winner: Runner) -> None:
        """It has an answer, and is the stream's source from now on."""
        if not self.won:
            self.won = True
            self._stream.flow_from(winner)
            for runner in self._runners:
                if runner is not winner:
                    runner.outrun()

    # ---- the stream's side (its source) ----

    def pause(self) -> None:
        """Nothing flows."""

    def resume(self) -> None:
        """Nothing flows."""

    def interrupt(self, error: GatewayError) -> None:
        for runner in self._runners:
            runner.interrupt(error)

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


class Tried(Protocol):
    """What an attempt came to; `kind` is None for an answer."""

    @property
    def kind(self) -> FailureKind | None: ...


T = TypeVar("T", bound=Tried)


async def hedged(
    first: Coroutine[Any, Any, T],
    second: Callable[[], Coroutine[Any, Any, T] | None],
    after_s: float,
    on_failed: Callable[[T], None],
) -> T:
    """What comes of `first`, or of `second()`, which is begun beside it after `after_s` seconds: the first answer, else
    the last failure, or one after which nobody else is asked. `on_failed` is told of one before the last.

    Raises what either raises. Nothing runs any more when this is over.
    """
    tasks = [asyncio.create_task(first)]
    try:
        done, running = await asyncio.wait(tasks, timeout=after_s)
        if not done and (other := second()) is not None:
            tasks.append(asyncio.create_task(other))
            running.add(tasks[1])
        while True:
            results = [task.result() for task in done if not task.cancelled()]
            results.sort(key=lambda tried: not _is_last_word(tried))
            for number, tried in enumerate(results, 1):
                if _is_last_word(tried) or (not running and number == len(results)):
                    return tried
                on_failed(tried)
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_last_word(tried: Tried) -> bool:
    return tried.kind is None or not RULES[tried.kind].another
