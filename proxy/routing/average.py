"""An average that forgets: what a replica's times have been lately."""

from __future__ import annotations

SHARE = 0.3
"""What one new value counts next to all that went before it."""
HALF_LIFE_S = 30.0
"""After so long without a value the average is worth half: who was slow is tried again, and can show that it no longer
is."""


class Average:
    """Of values given at times `now`, in seconds of one clock. 0 while there is none."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at: float | None = None

    def add(self, value: float, now: float) -> None:
        """The longer ago the last one was, the more this one counts."""
        if self._at is None:
            self._value = value
        else:
            self._value += (value - self._value) * (1.0 - (1.0 - SHARE) * _faded(now - self._at))
        self._at = now

    def value(self, now: float) -> float:
        """The average, faded by the time since the last value."""
        return 0.0 if self._at is None else self._value * _faded(now - self._at)


def _faded(silence_s: float) -> float:
    return 1.0 if silence_s <= 0 else 0.5 ** (silence_s / HALF_LIFE_S)
