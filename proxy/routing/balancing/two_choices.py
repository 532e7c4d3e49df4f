"""`random`: the less loaded of two replicas drawn by chance.

Nearly as even as looking at all of them, and several gateways that do not know of each other do not all find the same
one idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica


class TwoChoices:
    """Draws by weight; of two equally loaded ones the first drawn, so that an idle route follows its weights too."""

    __slots__ = ("_rng",)

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, replicas: Sequence[Replica], facts: RequestFacts | None = None, now: float = 0.0) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        one = self._draw(replicas)
        other = self._draw([replica for replica in replicas if replica is not one])
        lighter = other.standing.in_flight * one.weight < one.standing.in_flight * other.weight
        return other if lighter else one

    def _draw(self, replicas: Sequence[Replica]) -> Replica:
        left = self._rng.random() * sum([replica.weight for replica in replicas])
        for replica in replicas:
            left -= replica.weight
            if left < 0:
                return replica
        return replicas[-1]
