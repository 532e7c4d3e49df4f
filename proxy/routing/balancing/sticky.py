"""`sticky`: requests of one session go to one replica, unless that one has too much to do.

Rendezvous hashing: each replica draws a number from the session's name and its own address, and the best one has it.
Every worker and every gateway with the same file agrees without a word; when a replica goes, only its sessions move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.load import has_room
from proxy.routing.facts import By, RequestFacts
from proxy.routing.replica import Replica

_BITS = (1 << 64) - 1


class Sticky:
    """What has no identity goes where least is in flight."""

    __slots__ = ("_by", "_header", "_seeds", "_strangers")

    def __init__(self, by: By = "session", header: str | None = None) -> None:
        self._by = by
        self._header = header
        self._seeds: dict[Replica, int] = {}
        self._strangers = LeastBusy()

    def pick(self, replicas: Sequence[Replica], facts: RequestFacts | None = None, now: float = 0.0) -> Replica:
        identity = None if facts is None else facts.identity(self._by, self._header)
        if identity is None:
            return self._strangers.pick(replicas, facts, now)
        drawn = _hash(identity)
        return max(has_room(replicas), key=lambda replica: self._score(replica, drawn))

    def _score(self, replica: Replica, drawn: int) -> float:
        """Highest for each replica in as many of the cases as its weight asks for."""
        seed = self._seeds.get(replica)
        if seed is None:
            seed = self._seeds[replica] = _hash(f"{replica.origin} {replica.prefix}")
        return -replica.weight / math.log((_mixed(drawn ^ seed) + 1) / (_BITS + 2))


def _hash(text: str) -> int:
    """The same in every process, unlike Python's own."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _mixed(number: int) -> int:
    """A number of 64 bits of which each depends on all of the given ones: splitmix64's last steps."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _BITS
    return number ^ (number >> 31)
