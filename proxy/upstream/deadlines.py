"""An exchange's deadlines: until the model says its first word, between two reads after that, for the whole answer.

One timer, set again when it fires too early: nothing but `last_read` is touched for an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.errors import FirstTokenTimeout, UpstreamError, UpstreamIdle, UpstreamTimeout
from proxy.routing.table import Timeouts


class Deadlines:
    """Calls `expired(error)` once when a limit has passed. Times are the running loop's.

    `last_read`: when bytes last came, the owner's to keep. The owner's duty: `start`, and at the end `stop`.
    """

    __slots__ = ("_expired", "_limits", "_loop", "_paused", "_spoken", "_started", "_timer", "last_read")

    def __init__(self, limits: Timeouts, expired: Callable[[UpstreamError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._expired = expired
        self._spoken = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._started = self.last_read = self._loop.time()

    def start(self) -> None:
        self._set_timer()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def spoken(self) -> None:
        """The model has begun to speak: another silence counts now."""
        self.stop()
        self._spoken = True
        self.last_read = self._loop.time()
        self._set_timer()

    def pause(self) -> None:
        """Nobody reads on purpose: no silence counts until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.last_read = self._loop.time()

    def _set_timer(self) -> None:
        due, error = self._next()
        if error is None:
            return
        if due <= self._loop.time():
            self._expired(error)
        else:
            self._timer = self._loop.call_at(due, self._set_timer)

    def _next(self) -> tuple[float, UpstreamError | None]:
        """When the next limit will have passed if nothing comes, and what to say then; no error: never."""
        limits = self._limits
        due = float("inf")
        error: UpstreamError | None = None
        if limits.total_s is not None:
            due = self._started + limits.total_s
            error = UpstreamTimeout(f"the answer took longer than timeouts.total ({limits.total_s:g} s)")
        silence_s = limits.idle_s if self._spoken else limits.first_token_s
        if silence_s is not None:
            silent_due = (self._loop.time() if self._paused else self.last_read) + silence_s
            if silent_due < due:
                due, error = silent_due, self._silence(silence_s)
        return due, error

    def _silence(self, silence_s: float) -> UpstreamError:
        if self._spoken:
            return UpstreamIdle(f"nothing came for timeouts.idle ({silence_s:g} s)")
        return FirstTokenTimeout(f"nothing came within timeouts.first_token ({silence_s:g} s)")
