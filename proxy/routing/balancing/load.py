"""How loaded a replica is, and how much of it is too much: what several policies ask."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.routing.replica import Replica

BOUND = 1.25
"""A replica that is preferred for what it knows may have so many times its share of what is in flight."""
IDLE = 4
"""So many requests, for each unit of weight, are no load: a preferred replica takes them, whatever the others do."""


def load(replica: Replica) -> float:
    """What it would have in flight with one request more, for each unit of weight."""
    return (replica.standing.in_flight + 1) / replica.weight


def most_load(replicas: Sequence[Replica]) -> float:
    """The load up to which a preferred replica is taken. At least one of `replicas` is within it."""
    in_flight = 1
    weight = 0
    for replica in replicas:
        in_flight += replica.standing.in_flight
        weight += replica.weight
    return max(in_flight / weight * BOUND, IDLE)


def has_room(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that may be preferred; never none."""
    most = most_load(replicas)
    return [replica for replica in replicas if load(replica) <= most]
