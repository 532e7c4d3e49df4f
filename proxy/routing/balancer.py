"""Which replica gets the next request. Pure policies: facts in, a replica out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proxy.routing.replica import Replica


class Balancer(Protocol):
    """A policy. It may keep state of its own, and is only ever asked from one thread."""

    def pick(self, replicas: Sequence[Replica]) -> Replica:
        """One of `replicas`, which is never empty."""


class RoundRobin:
    """One after the other, in the file's order."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def pick(self, replicas: Sequence[Replica]) -> Replica:
        picked = replicas[self._next % len(replicas)]
        self._next += 1
        return picked
