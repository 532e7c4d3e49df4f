"""`least_busy`: the replica with the least in flight for its weight; of equals the faster one, else in turn."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp

from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica


class LeastBusy:
    """Suits streams, which last: what is in flight is what there is to do."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, replicas: Sequence[Replica], facts: RequestFacts | None = None, now: float = 0.0) -> Replica:
        least = -1.0
        equals: list[Replica] = []
        for replica in replicas:
            load = (replica.standing.in_flight + 1) / replica.weight  # load(), without its call
            if load < least or least < 0:
                least, equals = load, [replica]
            elif load == least:
                equals.append(replica)
        return equals[0] if len(equals) == 1 else self._of_equals(equals, now)

    def _of_equals(self, equals: Sequence[Replica], now: float) -> Replica:
        speeds = [_speed(replica, now) for replica in equals]
        fastest = min(speeds)
        fast = [replica for replica, speed in zip(equals, speeds, strict=True) if speed == fastest]
        self._turn += 1
        return fast[self._turn % len(fast)]


def _speed(replica: Replica, now: float) -> int:
    """The time to its first token as a power of two: less of a difference is none, or one replica would have it all."""
    first_token_s = replica.standing.first_token.value(now)
    return frexp(first_token_s)[1] if first_token_s > 0.001 else -10
