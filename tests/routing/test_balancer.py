"""Every `balance` has its policy, and what every policy promises."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from proxy.config.values import Balance, Method
from proxy.routing.balancer import RoundRobin, build_balancer
from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.prefix import Prefix
from proxy.routing.balancing.sticky import Sticky
from proxy.routing.balancing.two_choices import TwoChoices
from tests.support.replicas import facts, replicas

METHODS: list[Method] = ["least_busy", "round_robin", "random", "sticky", "prefix"]


@pytest.mark.parametrize(
    ("method", "policy"),
    [
        ("least_busy", LeastBusy),
        ("round_robin", RoundRobin),
        ("random", TwoChoices),
        ("sticky", Sticky),
        ("prefix", Prefix),
    ],
)
def test_a_balance_names_a_policy(method: Method, policy: type) -> None:
    assert type(build_balancer(Balance(method), Random(1))) is policy


def test_sticky_keeps_to_what_the_file_says() -> None:
    there = replicas(20)
    by_header = build_balancer(Balance("sticky", "header", "X-Tenant"), Random(1))
    picked = {
        by_header.pick(there, facts(("X-Tenant", "blue"), key=f"key-{number}"), 0.0).index for number in range(20)
    }
    assert len(picked) == 1
    by_key = build_balancer(Balance("sticky"), Random(1))
    assert len({by_key.pick(there, facts(key=f"key-{number}"), 0.0).index for number in range(20)}) > 1


@pytest.mark.parametrize("method", METHODS)
def test_one_replica_is_always_picked(method: Method) -> None:
    balancer, there = build_balancer(Balance(method), Random(1)), replicas(1)
    for request in (None, facts(key="web"), facts(prompt="x" * 9000, key="web")):
        assert balancer.pick(there, request, 100.0) is there[0]


@pytest.mark.parametrize("method", METHODS)
def test_only_candidates_are_picked_whatever_was_there_before(method: Method) -> None:
    balancer, there, rng = build_balancer(Balance(method), Random(1)), replicas(6), Random(2)
    for number in range(300):
        candidates = rng.sample(there, rng.randint(1, 6))
        for replica in there:
            replica.standing.in_flight = rng.randrange(12)
        request = facts(key=f"key-{number % 7}", prompt=f"{number % 5}" * 3000)
        assert balancer.pick(candidates, request, float(number)) in candidates


@pytest.mark.parametrize("method", METHODS)
def test_without_facts_idle_replicas_share_the_work(method: Method) -> None:
    balancer, there = build_balancer(Balance(method), Random(1)), replicas(4)
    counts = Counter(balancer.pick(there).index for _ in range(400))
    assert min(counts[index] for index in range(4)) > 60
