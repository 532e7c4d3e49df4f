"""What active probes say of one replica: down after `fall` failures in a row, up again after `rise` successes.

Pure: it is told how each probe went. Sending them belongs to `upstream`.
"""

from __future__ import annotations

from random import Random

from msgspec import Struct

LEAST_PAUSE = 0.8
"""Pauses are this part of `every_s` at least, and never longer than it: the probes of many replicas and workers drift
apart, and no replica comes back later than it should."""


class HealthRules(Struct, frozen=True):
    """`health: {path, every, timeout, fall, rise}` of a route."""

    path: str = "/health"
    every_s: float = 5.0
    timeout_s: float = 2.0
    fall: int = 3
    rise: int = 2

    def pause_s(self, rng: Random) -> float:
        """Until the next probe."""
        return self.every_s * rng.uniform(LEAST_PAUSE, 1.0)


class Health:
    """Up until probes say otherwise: a gateway that has just started sends requests at once."""

    __slots__ = ("_in_a_row", "rules", "up")

    def __init__(self, rules: HealthRules) -> None:
        self.rules = rules
        self.up = True
        self._in_a_row = 0
        """Probes that spoke against what `up` says."""

    def passed(self) -> bool:
        """A probe was answered well. True if that brought the replica up."""
        return self._heard(well=True, needed=self.rules.rise)

    def failed(self) -> bool:
        """A probe failed. True if that took the replica down."""
        return self._heard(well=False, needed=self.rules.fall)

    def _heard(self, *, well: bool, needed: int) -> bool:
        self._in_a_row = 0 if well is self.up else self._in_a_row + 1
        if self._in_a_row < needed:
            return False
        self.up = well
        self._in_a_row = 0
        return True


def is_well(status: int) -> bool:
    """Whether a probe's answer speaks for the replica: one without that path, or that asks for a key, lives."""
    return status < 500
