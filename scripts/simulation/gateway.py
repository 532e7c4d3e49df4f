"""The gateway of a simulation: the program's own policies, between simulated clients and simulated model servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from proxy.routing.balancer import Balancer
from proxy.routing.breaker import BreakerRules
from proxy.routing.facts import RequestFacts
from proxy.routing.failure_kind import FailureKind
from proxy.routing.replica import Origin, Replica
from proxy.routing.retry import Attempts, Next, RetryRules
from proxy.routing.retry_budget import RetryBudget
from proxy.routing.standing import Standing, Visit
from scripts.simulation.server import Health, Server
from scripts.simulation.world import World


@dataclass(slots=True, eq=False)
class Request:
    """A client's request, and how it went. Its work is in seconds of an idle server, less its prompt's blocks."""

    prompt_s: float
    answer_s: float
    facts: RequestFacts | None = None
    came_at: float = 0.0
    tries: int = 0
    replica: int | None = None
    first_token_s: float | None = None
    """None if it failed."""
    warm: float = 0.0
    """Which part of its prompt was cached."""


class Unlimited(RetryBudget):
    """No budget: every try is granted."""

    def spend(self, now: float) -> bool:
        super().spend(now)
        return True


class Gateway:
    """Sends requests to servers; `requests` has all of them, `tries_at` when each was tried."""

    def __init__(
        self,
        world: World,
        servers: Sequence[Server],
        balancer: Balancer,
        *,
        breaker: BreakerRules | None = None,
        retry: RetryRules = RetryRules(),  # noqa: B008 (frozen)
        budget: RetryBudget | None = None,
        weights: Sequence[int] = (),
        first_token_s: float = 2.0,
        seed: int = 0,
    ) -> None:
        self._world = world
        self._servers = servers
        self._balancer = balancer
        self._retry = retry
        self._budget = budget or RetryBudget()
        self._first_token_s = first_token_s
        self._rng = Random(seed)
        self.replicas = [
            Replica(index, Origin("http", f"gpu-{index}", 8000), "", weight=weight, standing=Standing(breaker))
            for index, weight in enumerate(weights or [1] * len(servers))
        ]
        self.present = list(self.replicas)
        self.requests: list[Request] = []
        self.tries_at: list[float] = []
        self.on_done: Callable[[Request], None] = lambda request: None

    def send(self, request: Request) -> None:
        """A client's request comes in now."""
        request.came_at = self._world.now
        self.requests.append(request)
        self._budget.request(self._world.now)
        self._try(request, Attempts(self._retry, self._budget, self._rng))

    def _try(self, request: Request, attempts: Attempts) -> None:
        now = self._world.now
        candidates = attempts.candidates(self.present, now)
        if not candidates:
            self.on_done(request)
            return
        replica = self._balancer.pick(candidates, request.facts, now)
        server = self._servers[replica.index]
        visit = Visit(replica.standing, now)
        request.tries += 1
        request.replica = replica.index
        self.tries_at.append(now)
        if server.health is Health.ERRORS:
            server.refused += 1
            self._failed(request, attempts, replica, visit, FailureKind.SERVER_ERROR)
            return
        if server.health is Health.STALLS:
            failed = partial(self._failed, request, attempts, replica, visit, FailureKind.SILENT)
            self._world.after(self._first_token_s, failed)
            return
        blocks = [] if request.facts is None else request.facts.prompt_blocks()
        first, end = partial(self._first, request, visit), partial(self._end, request, visit)
        request.warm = server.begin(blocks, request.prompt_s, request.answer_s, first, end)

    def _failed(self, request: Request, attempts: Attempts, replica: Replica, visit: Visit, kind: FailureKind) -> None:
        now = self._world.now
        visit.failed(kind, now)
        visit.over()
        step = attempts.after(kind, replica, self.present, now)
        if step.next is Next.TRY:
            self._world.after(step.wait_s, partial(self._try, request, attempts))
        else:
            self.on_done(request)

    def _first(self, request: Request, visit: Visit) -> None:
        request.first_token_s = self._world.now - request.came_at
        visit.content(self._world.now)

    def _end(self, request: Request, visit: Visit) -> None:
        visit.over()
        self.on_done(request)
