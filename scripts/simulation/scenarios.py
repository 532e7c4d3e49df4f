"""The situations in which policies show what they are worth; each is a function of a policy and a seed, and tells what
clients saw. The same ones are drawn for docs/balancing.md and held against their promises by the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from proxy.routing.balancer import Balancer
from proxy.routing.balancing.round_robin import RoundRobin
from proxy.routing.breaker import BreakerRules, State
from proxy.routing.limiter import Limiter, RouteRules, Stage, Ticket
from proxy.routing.retry_budget import RetryBudget
from scripts.simulation.gateway import Gateway, Request
from scripts.simulation.server import Health, Server
from scripts.simulation.traffic import Conversation, arrivals, even, skewed
from scripts.simulation.world import World

BalancerOf = Callable[[Random], Balancer]


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw. Times are in seconds, to the first token of requests that were answered."""

    p50: float
    p99: float
    answered: int
    failed: int
    tries: int
    warm: float
    """Which part of the prompts was cached, on average."""
    most_at_once: tuple[int, ...]
    """At each server."""


def seen(gateway: Gateway, servers: Sequence[Server], since: float = 0.0) -> Seen:
    requests = [request for request in gateway.requests if request.came_at >= since]
    times = [request.first_token_s for request in requests if request.first_token_s is not None]
    return Seen(
        p50=quantile(times, 0.5),
        p99=quantile(times, 0.99),
        answered=len(times),
        failed=len(requests) - len(times),
        tries=sum(request.tries for request in requests),
        warm=sum(request.warm for request in requests) / max(1, len(requests)),
        most_at_once=tuple(server.most_at_once for server in servers),
    )


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else float("nan")


def uneven_answers(
    balancer: BalancerOf, seed: int, speeds: Sequence[float] = (1.0, 1.0, 1.0, 1.0), busy: float = 0.75
) -> Seen:
    """Answers of very different lengths, at `busy` of what the servers can do. A slow server is one of `speeds`."""
    world, rng = World(), Random(seed)
    servers = [Server(world, speed) for speed in speeds]
    gateway = Gateway(world, servers, balancer(rng), seed=seed)
    per_s = busy * sum(server.speed * server.slots for server in servers) / 3.0
    for moment in arrivals(rng, per_s, 600.0):
        world.at(moment, partial(gateway.send, skewed(rng)))
    world.run()
    return seen(gateway, servers, since=60.0)


def conversations(balancer: BalancerOf, seed: int, talkers: int = 120) -> Seen:
    """People who talk with the model under one of three long system prompts, four servers with bounded caches."""
    world, rng = World(), Random(seed)
    servers = [Server(world) for _ in range(4)]
    gateway = Gateway(world, servers, balancer(rng), seed=seed)
    systems = [f"system {number} " + "y" * 12_000 for number in range(3)]
    talking: dict[str, Conversation] = {}
    for number in range(talkers):
        name = f"talker-{number}"
        talking[name] = Conversation(world, gateway, rng, name, rng.choice(systems), turns=8)
        world.at(rng.uniform(0.0, 60.0), talking[name].next_turn)
    gateway.on_done = lambda request: talking[_who(request)].think()
    world.run()
    return seen(gateway, servers)


def _who(request: Request) -> str:
    assert request.facts is not None
    return request.facts.identity("user") or ""


def late_server(balancer: BalancerOf, seed: int) -> Seen:
    """Three busy servers; after a minute a fourth joins."""
    world, rng = World(), Random(seed)
    servers = [Server(world) for _ in range(4)]
    gateway = Gateway(world, servers, balancer(rng), seed=seed)
    late = gateway.present.pop()
    world.at(60.0, lambda: gateway.present.append(late))
    for moment in arrivals(rng, 0.8 * 3 * 8 / 2.2, 180.0):
        world.at(moment, partial(gateway.send, even(rng)))
    world.run()
    return seen(gateway, servers, since=60.0)


@dataclass(frozen=True, slots=True)
class Flapping:
    """`wasted`: tries at the server while it failed; `opened`: when the breaker opened, `closed`: when it closed."""

    seen: Seen
    wasted: int
    opened: tuple[float, ...]


def flapping_server(balancer: BalancerOf, seed: int, breaker: BreakerRules | None, until: float = 300.0) -> Flapping:
    """One of three servers answers 503 for five seconds of every fifteen."""
    world, rng = World(), Random(seed)
    servers = [Server(world) for _ in range(3)]
    gateway = Gateway(world, servers, balancer(rng), breaker=breaker, seed=seed)
    standing = gateway.replicas[0].standing
    for number in range(int(until / 15.0)):
        world.at(15.0 * number + 10.0, partial(setattr, servers[0], "health", Health.ERRORS))
        world.at(15.0 * number + 15.0, partial(setattr, servers[0], "health", Health.WELL))
    states: list[tuple[float, State]] = [(0.0, State.CLOSED)]

    def look() -> None:
        state = standing.breaker_state(world.now)
        if state is not states[-1][1]:
            states.append((world.now, state))

    for tick in range(int(until * 10)):
        world.at(tick / 10, look)
    for moment in arrivals(rng, 6.0, until):
        world.at(moment, partial(gateway.send, even(rng)))
    world.run()
    opened = tuple(moment for moment, state in states if state is State.OPEN)
    return Flapping(seen(gateway, servers), servers[0].refused, opened)


@dataclass(frozen=True, slots=True)
class Stalled:
    """`seen` is of requests that came after the breaker had opened (`opened`), or after the same time without one."""

    seen: Seen
    opened: float
    requests: int
    tries: int


def stalled_server(
    balancer: BalancerOf, seed: int, *, stalls: bool = True, since: float = 0.0, until: float = 300.0
) -> Stalled:
    """Four servers at half of what they can do; after half a minute one of them takes requests and says nothing."""
    world, rng = World(), Random(seed)
    servers = [Server(world) for _ in range(4)]
    gateway = Gateway(world, servers, balancer(rng), breaker=BreakerRules(), seed=seed)
    standing = gateway.replicas[0].standing
    opened = [since] if since else []
    if stalls:
        world.at(30.0, partial(setattr, servers[0], "health", Health.STALLS))

    def look() -> None:
        if not opened and standing.breaker_state(world.now) is State.OPEN:
            opened.append(world.now)

    for tick in range(int(until * 10)):
        world.at(tick / 10, look)
    for moment in arrivals(rng, 0.5 * 4 * 8 / 2.2, until):
        world.at(moment, partial(gateway.send, even(rng)))
    world.run()
    first = opened[0] if opened else math.inf
    return Stalled(seen(gateway, servers, since=first), first, len(gateway.requests), len(gateway.tries_at))


def outage(budget: RetryBudget, seed: int, breaker: BreakerRules | None = None) -> tuple[list[int], list[int]]:
    """Every server answers 503 from second 20 to 40, 60 requests a second. Requests, and tries, of each second."""
    world, rng = World(), Random(seed)
    servers = [Server(world, slots=64) for _ in range(3)]
    gateway = Gateway(world, servers, RoundRobin(), budget=budget, breaker=breaker, seed=seed)
    for server in servers:
        world.at(20.0, partial(setattr, server, "health", Health.ERRORS))
        world.at(40.0, partial(setattr, server, "health", Health.WELL))
    for moment in arrivals(rng, 60.0, 60.0):
        world.at(moment, partial(gateway.send, even(rng)))
    world.run()
    return per_second([request.came_at for request in gateway.requests]), per_second(gateway.tries_at)


def per_second(moments: Sequence[float]) -> list[int]:
    counts = [0] * (int(max(moments, default=0.0)) + 1)
    for moment in moments:
        counts[int(moment)] += 1
    return counts


def moved(placed: Callable[[str, int], int], sessions: int, servers: int) -> float:
    """Which part of the sessions has another server once the last one of `servers` is gone, of those that need not."""
    names = [f"session-{number}" for number in range(sessions)]
    stayed = [name for name in names if placed(name, servers) != servers - 1]
    return sum(placed(name, servers) != placed(name, servers - 1) for name in stayed) / len(stayed)


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds in the queue, of those who were served: of the key that asks for much, and of those that ask little."""

    greedy: float
    polite: float
    polite_refused: int


def greedy_key(seed: int, *, fair: bool) -> Waits:
    """One key asks for 200 answers at once, six others for one every few seconds; eight places, a queue of 150."""
    world, rng = World(), Random(seed)
    limiter = Limiter(RouteRules(streams=8, queue=150, queue_timeout_s=None))
    waits: dict[bool, list[float]] = {True: [], False: []}
    refused: list[bool] = []
    greedy_of: dict[Ticket, bool] = {}

    def come(key: str, greedy: bool) -> None:
        ticket, displaced = limiter.enter(key if fair else "everybody", world.now)
        greedy_of[ticket] = greedy
        refused.extend(greedy_of[other] for other in displaced)
        if ticket.stage is Stage.ADMITTED:
            serve(ticket)
        elif ticket.stage is Stage.REFUSED:
            refused.append(greedy)

    def serve(ticket: Ticket) -> None:
        waits[greedy_of[ticket]].append(world.now - ticket.entered)
        world.after(rng.uniform(1.0, 3.0), lambda: end(ticket))

    def end(ticket: Ticket) -> None:
        for admitted in limiter.leave(ticket, world.now):
            serve(admitted)

    for _ in range(200):
        world.at(rng.uniform(5.0, 6.0), lambda: come("greedy", True))
    for number in range(6):
        for moment in arrivals(rng, 0.2, 40.0):
            world.at(moment, partial(come, f"polite-{number}", False))
    world.run()
    mean = {greedy: sum(values) / len(values) for greedy, values in waits.items()}
    return Waits(mean[True], mean[False], refused.count(False))
