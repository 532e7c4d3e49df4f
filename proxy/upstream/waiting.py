"""A stream's source while nothing flows yet: somebody waits for a place or for the next attempt, and a drain whose time
is over must be able to end that too."""

from __future__ import annotations

import asyncio

from proxy.errors import GatewayError
from proxy.streams.stream import Stream


class Waiting:
    """One wait on behalf of `stream`. Making it raises what the stream was interrupted with meanwhile."""

    __slots__ = ("_error", "_is_over", "_sleeper")

    def __init__(self, stream: Stream) -> None:
        self._is_over = False
        self._error: GatewayError | None = None
        self._sleeper: asyncio.Future[None] | None = None
        stream.flow_from(self)

    async def last(self, at_most_s: float | None) -> bool:
        """Wait until `release`: True; or for so long (None: for ever): False. Raises what interrupts the stream."""
        if not self._is_over:
            self._sleeper = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(at_most_s):
                    await self._sleeper
            except TimeoutError:
                return False
        if self._error is not None:
            raise self._error
        return True

    def release(self) -> None:
        """What is waited for has come."""
        self._is_over = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    # ---- the stream's side (its source) ----

    def pause(self) -> None:
        """Nothing flows."""

    def resume(self) -> None:
        """Nothing flows."""

    def interrupt(self, error: GatewayError) -> None:
        self._error = error
        self.release()

    def close(self) -> None:
        """Nothing is held."""
