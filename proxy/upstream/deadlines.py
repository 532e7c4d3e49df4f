"""A connection's deadlines, for one exchange after the other: until the model says its first word, between two reads
after that, for the whole answer.

One timer, which is set anew only when it fires: nothing here is touched for an event, hardly anything for a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Protocol

from proxy.errors import FirstTokenTimeout, UpstreamError, UpstreamIdle, UpstreamTimeout
from proxy.routing.table import Timeouts

NO_LIMITS = Timeouts(None, None, None, None)
STOOD_STILL_S = 1.0
"""A timer that fires so late does so because this process did not run: what has come meanwhile is not read yet, since
loops see to their timers first."""
READ_WITHIN_S = 0.05
"""How long that may then take."""


class Reader(Protocol):
    """Who reads the answer. `last_read`: when bytes last came, by the running loop's clock."""

    last_read: float


class Deadlines:
    """Calls `expired(error)` once when a limit has passed. Times are the running loop's.

    The owner's duty: `start` for each exchange, `stop` at its end, and `close` once no other will come.
    """

    __slots__ = ("_expired", "_limits", "_loop", "_paused", "_reader", "_spoken", "_started", "_timer", "_timer_due")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf
        self._limits = NO_LIMITS
        self._reader: Reader | None = None
        self._spoken = False
        self._paused = False
        self._started = 0.0

    def start(self, limits: Timeouts, reader: Reader, expired: Callable[[UpstreamError], None]) -> None:
        """From now on these limits count, for what `reader` reads."""
        self._limits = limits
        self._reader = reader
        self._expired = expired
        self._spoken = False
        self._paused = False
        self._started = reader.last_read = self._loop.time()
        self._set_timer()

    def stop(self) -> None:
        """No limit counts any more. The timer is left to fire for nothing: the next exchange may well need it."""
        self._reader = None

    def close(self) -> None:
        self.stop()
        if self._timer is not None:
            self._timer.cancel()

    def spoken(self) -> None:
        """The model has begun to speak: another silence counts now."""
        if self._reader is not None:
            self._spoken = True
            self._reader.last_read = self._loop.time()
            self._set_timer()

    def pause(self) -> None:
        """Nobody reads on purpose: no silence counts until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._reader is not None:
            self._reader.last_read = self._loop.time()

    def _set_timer(self) -> None:
        """See to it that the timer fires when the next limit will have passed if nothing comes, or before."""
        due = self._next()
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._fire_at(due)

    def _fire_at(self, due: float) -> None:
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._check)

    def _check(self) -> None:
        due, self._timer_due = self._timer_due, inf
        self._timer = None
        if self._reader is None:
            return
        now = self._loop.time()
        if self._next() > now:
            self._set_timer()
        elif now - due > STOOD_STILL_S:
            self._fire_at(now + READ_WITHIN_S)
        else:
            self._expired(self._error(now))

    def _next(self) -> float:
        limits = self._limits
        due = inf if limits.total_s is None else self._started + limits.total_s
        silence_s = limits.idle_s if self._spoken else limits.first_token_s
        if silence_s is not None and self._reader is not None:
            due = min(due, (self._loop.time() if self._paused else self._reader.last_read) + silence_s)
        return due

    def _error(self, now: float) -> UpstreamError:
        """What to say of the limit that has passed."""
        limits = self._limits
        if limits.total_s is not None and self._started + limits.total_s <= now:
            return UpstreamTimeout(f"the answer took longer than timeouts.total ({limits.total_s:g} s)")
        if self._spoken:
            return UpstreamIdle(f"nothing came for timeouts.idle ({limits.idle_s:g} s)")
        return FirstTokenTimeout(f"nothing came within timeouts.first_token ({limits.first_token_s:g} s)")
