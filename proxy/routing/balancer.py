"""Which replica gets the next request. Pure policies: facts in, a replica out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol, assert_never

from proxy.config.values import Balance
from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.prefix import Prefix
from proxy.routing.balancing.round_robin import RoundRobin
from proxy.routing.balancing.sticky import Sticky
from proxy.routing.balancing.two_choices import TwoChoices
from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica

__all__ = ["Balancer", "RoundRobin", "build_balancer"]


class Balancer(Protocol):
    """A policy. It may keep state of its own, and is only ever asked from one thread."""

    def pick(self, replicas: Sequence[Replica], facts: RequestFacts | None = None, now: float = 0.0) -> Replica:
        """One of `replicas`, which are those that may be asked now, and never empty.

        Without `facts` (what is known of the request) a policy that needs them takes the least busy one.
        """


def build_balancer(balance: Balance, rng: Random) -> Balancer:
    """The policy that a route's `balance` names."""
    match balance.method:
        case "least_busy":
            return LeastBusy()
        case "round_robin":
            return RoundRobin()
        case "random":
            return TwoChoices(rng)
        case "sticky":
            return Sticky(balance.by, balance.header)
        case "prefix":
            return Prefix()
        case unknown:
            assert_never(unknown)
