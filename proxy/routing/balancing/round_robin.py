"""`round_robin`: one after the other, in the file's order; a replica of weight 2 has two turns."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica


class RoundRobin:
    """Each pick gives every replica its weight in credit, and the one with the most pays for all: turns are spread
    evenly, not in runs."""

    __slots__ = ("_credits",)

    def __init__(self) -> None:
        self._credits: dict[Replica, int] = {}

    def pick(self, replicas: Sequence[Replica], facts: RequestFacts | None = None, now: float = 0.0) -> Replica:
        credits = self._credits
        picked = replicas[0]
        most = total = 0
        for replica in replicas:
            weight = replica.weight
            total += weight
            credit = credits[replica] = credits.get(replica, 0) + weight
            if credit > most:
                picked, most = replica, credit
        credits[picked] -= total
        return picked
