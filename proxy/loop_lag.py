"""How late the event loop is: whether something keeps it from serving its sockets. Telling it is the metrics'."""

from __future__ import annotations

import asyncio
import time
from collections import deque

EVERY_S = 0.5
REMEMBERED_S = 15.0


class LoopLag:
    """Looks at the running loop's punctuality. To be made in it; the owner's duty: `stop`.

    The clock is the system's: uvloop's own stands still within a turn of the loop, and counts whole milliseconds.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._every_s = every_s
        self._latest: deque[float] = deque(maxlen=max(1, round(REMEMBERED_S / every_s)))
        self._wait()

    def worst_s(self) -> float:
        """By how many seconds a turn was late at worst, within the last `REMEMBERED_S`; of the one that is due, too."""
        return max(*self._latest, self._late_s(), 0.0)

    def stop(self) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._due = time.monotonic() + self._every_s
        self._timer = self._loop.call_later(self._every_s, self._look)

    def _look(self) -> None:
        self._latest.append(self._late_s())
        self._wait()

    def _late_s(self) -> float:
        return time.monotonic() - self._due
