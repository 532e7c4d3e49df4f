"""When a tool server that died or would not start is started again: at once, then after growing pauses."""

from __future__ import annotations

LONGEST_PAUSE_S = 30.0


class Restarts:
    """One server's failures in a row; an answered call ends the row, a mere start does not. `now` is any clock's
    seconds."""

    __slots__ = ("_failures", "_not_before")

    def __init__(self) -> None:
        self._failures = 0
        self._not_before = 0.0

    def failed(self, now: float) -> None:
        """It died, or did not start: the next start comes at once, then after 1 s, 2 s, 4 s … up to 30 s."""
        self._failures += 1
        pause_s = 0.0 if self._failures == 1 else min(2.0 ** (self._failures - 2), LONGEST_PAUSE_S)
        self._not_before = now + pause_s

    def answered(self) -> None:
        """A call was answered: it works."""
        self._failures = 0

    def pause_s(self, now: float) -> float:
        """How long it must not be started yet; 0 when it may."""
        return max(0.0, self._not_before - now) if self._failures else 0.0
