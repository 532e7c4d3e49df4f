"""The drawings of docs/balancing.md: which scenarios are shown, and of which policies. Medians of several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from statistics import median

from proxy.routing.balancer import Balancer
from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.prefix import Prefix
from proxy.routing.balancing.round_robin import RoundRobin
from proxy.routing.balancing.sticky import Sticky
from proxy.routing.balancing.two_choices import TwoChoices
from proxy.routing.breaker import BreakerRules
from proxy.routing.retry_budget import RetryBudget
from scripts.simulation.drawing import Bars, Lines, drawing
from scripts.simulation.gateway import Unlimited
from scripts.simulation.scenarios import (
    BalancerOf,
    conversations,
    flapping_server,
    greedy_key,
    outage,
    uneven_answers,
)


def _round_robin(rng: Random) -> Balancer:
    return RoundRobin()


def _least_busy(rng: Random) -> Balancer:
    return LeastBusy()


def _sticky(rng: Random) -> Balancer:
    return Sticky("user")


def _prefix(rng: Random) -> Balancer:
    return Prefix()


SPREADING: Mapping[str, BalancerOf] = {
    "round_robin": _round_robin,
    "random": TwoChoices,
    "least_busy": _least_busy,
}
WARMING: Mapping[str, BalancerOf] = {"least_busy": _least_busy, "sticky: user": _sticky, "prefix": _prefix}
ALIKE = (1.0, 1.0, 1.0, 1.0)
ONE_SLOW = (1.0, 1.0, 1.0, 0.33)


def figures(seeds: int) -> Iterator[tuple[str, str]]:
    """Each drawing's name and SVG."""
    yield "load", drawing("Waiting for the first token", [_uneven(seeds), _slow(seeds)])
    yield "warm", drawing("Conversations", _warm(seeds))
    yield "outage", drawing("An outage", [_outage(), _flapping(seeds)])
    yield "queue", drawing("A queue that is fair", [_queue(seeds, fair=False), _queue(seeds, fair=True)])


def _over(seeds: int, figure: Callable[[int], float]) -> float:
    return median(figure(seed) for seed in range(1, seeds + 1))


def _p99(of: BalancerOf, speeds: Sequence[float], seed: int) -> float:
    return uneven_answers(of, seed, speeds).p99


def _wasted(rules: BreakerRules | None, seed: int) -> int:
    return flapping_server(_least_busy, seed, rules).wasted


def _uneven(seeds: int) -> Bars:
    title = "Answers of uneven length, four servers at 75 %: time to first token, 99 of 100, s"
    p99 = {name: _over(seeds, partial(_p99, of, ALIKE)) for name, of in SPREADING.items()}
    return Bars(title, p99, ["least_busy"])


def _slow(seeds: int) -> Bars:
    title = "The same, and one of the four is three times as slow"
    p99 = {name: _over(seeds, partial(_p99, of, ONE_SLOW)) for name, of in SPREADING.items()}
    return Bars(title, p99, ["least_busy"])


def _warm(seeds: int) -> list[Bars]:
    runs = {name: [conversations(of, seed) for seed in range(1, seeds + 1)] for name, of in WARMING.items()}
    warm = {name: 100 * median(run.warm for run in seen) for name, seen in runs.items()}
    p50 = {name: median(run.p50 for run in seen) for name, seen in runs.items()}
    return [
        Bars(
            "120 conversations, four servers: how much of a prompt was computed already", warm, ["prefix"], "{:.0f} %"
        ),
        Bars("Time to first token, half of the turns, s", p50, ["prefix"]),
    ]


def _outage() -> Lines:
    requests, unlimited = outage(Unlimited(), 1)
    _, limited = outage(RetryBudget(), 1)
    _, breaking = outage(RetryBudget(), 1, BreakerRules())
    series = {
        "requests": requests,
        "tries upstream, three for each request": unlimited,
        "tries with the retry budget": limited,
        "tries with the retry budget and breakers": breaking,
    }
    return Lines("Every server answers 503 from second 20 to 40: a second's requests and tries", series, 60)


def _flapping(seeds: int) -> Bars:
    runs: Mapping[str, BreakerRules | None] = {"without breaker": None, "with breaker": BreakerRules()}
    wasted = {name: _over(seeds, partial(_wasted, rules)) for name, rules in runs.items()}
    title = "One of three servers fails for 5 s of every 15: tries wasted on it in five minutes"
    return Bars(title, wasted, ["with breaker"], "{:.0f}")


def _queue(seeds: int, *, fair: bool) -> Bars:
    runs = [greedy_key(seed, fair=fair) for seed in range(1, seeds + 1)]
    waits = {
        "the key that asked for 200": median(run.greedy for run in runs),
        "the others": median(run.polite for run in runs),
    }
    title = "Keys in turn: mean wait in the queue, s" if fair else "First come, first served: mean wait in the queue, s"
    return Bars(title, waits, ["the others"], "{:.1f}")
