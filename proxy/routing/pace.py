"""How fast places become free: the measured service rate behind a `Retry-After`."""

from __future__ import annotations

import math

SHARE = 0.1
"""What one gap counts next to those before it: about the last ten matter."""
UNKNOWN_S = 2.0
"""What is said before anything was measured."""
SOONEST_S, LATEST_S = 1.0, 60.0
"""No client is told less or more than this."""


class Pace:
    """The time between two departures, while departures were what everybody waited for."""

    __slots__ = ("_gap_s", "_last")

    def __init__(self) -> None:
        self._gap_s: float | None = None
        self._last: float | None = None

    def beat(self, now: float) -> None:
        """A place became free while all were taken."""
        if self._last is not None:
            gap_s = now - self._last
            self._gap_s = gap_s if self._gap_s is None else self._gap_s + (gap_s - self._gap_s) * SHARE
        self._last = now

    def rest(self) -> None:
        """There was room: the time until the next departure says nothing."""
        self._last = None

    def wait_s(self, places: int, now: float) -> float:
        """How long it takes until so many places have become free, in whole seconds within the bounds above.

        A gap that already lasts longer than the mean counts as it is: a route that stands still says so.
        """
        gap_s = self._gap_s
        if self._last is not None:
            gap_s = max(gap_s or 0.0, now - self._last)
        expected_s = UNKNOWN_S if not gap_s else gap_s * places
        return float(math.ceil(min(max(expected_s, SOONEST_S), LATEST_S)))
