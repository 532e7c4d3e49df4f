"""What a reload keeps: a route that stays has its queue, a replica that stays how it stands.

A route is known by its name, a replica by its route and address; what the file says new about them is applied to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

from proxy.config.route import Route as RouteSettings
from proxy.routing.balancer import Balancer, build_balancer
from proxy.routing.balancing.prefix import Prefix
from proxy.routing.breaker import BreakerRules
from proxy.routing.breaker_log import BreakerLog
from proxy.routing.health_check import HealthRules
from proxy.routing.limiter import Limiter, RouteRules
from proxy.routing.replica import Replica


class Former(Protocol):
    """A route of the table before."""

    @property
    def replicas(self) -> Sequence[Replica]: ...

    @property
    def balancer(self) -> Balancer: ...

    @property
    def limiter(self) -> Limiter: ...


class Succession:
    """The table before, by its routes' names; empty at the start."""

    __slots__ = ("_before", "_rng")

    def __init__(self, before: Mapping[str, Former], rng: Random) -> None:
        self._before = before
        self._rng = rng

    def balancer(self, name: str, settings: RouteSettings) -> Balancer:
        """What `prefix` has learned stays; the other policies have nothing to lose."""
        former = self._before.get(name)
        if former is not None and settings.balance.method == "prefix" and isinstance(former.balancer, Prefix):
            return former.balancer
        return build_balancer(settings.balance, self._rng)

    def limiter(self, name: str, settings: RouteSettings) -> Limiter:
        """The caller's duty, once the new table serves: `Limiter.admit` whom new limits let in."""
        limits = settings.limits
        rules = RouteRules(limits.streams, limits.queue, limits.queue_timeout_s)
        former = self._before.get(name)
        if former is None:
            return Limiter(rules)
        former.limiter.rules = rules
        return former.limiter

    def settle(self, name: str, settings: RouteSettings, replicas: Sequence[Replica]) -> None:
        """Give each of a route's new replicas its rules and, where its address was there before, its standing."""
        breaker, health = _breaker_rules(settings), _health_rules(settings)
        former = self._before.get(name)
        left = [] if former is None else list(former.replicas)
        for replica in replicas:
            same = next((old for old in left if (old.origin, old.prefix) == (replica.origin, replica.prefix)), None)
            if same is not None:
                left.remove(same)
                replica.standing = same.standing
                replica.takes_stream_options = same.takes_stream_options
            replica.standing.log = BreakerLog(name, replica.index)
            replica.standing.change(breaker, health if replica.origin.scheme != "demo" else None)


def _breaker_rules(settings: RouteSettings) -> BreakerRules | None:
    breaker = settings.breaker
    return None if breaker is None else BreakerRules(breaker.failures, breaker.within_s, breaker.open_for_s)


def _health_rules(settings: RouteSettings) -> HealthRules | None:
    health = settings.health
    if health is None:
        return None
    return HealthRules(health.path, health.every_s, health.timeout_s, health.fall, health.rise)
