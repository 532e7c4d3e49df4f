"""Least in flight for its weight, then the faster one, then in turn; and what that is worth."""

from __future__ import annotations

from collections import Counter

import pytest

from proxy.routing.average import HALF_LIFE_S
from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.round_robin import RoundRobin
from proxy.routing.breaker import BreakerRules
from scripts.simulation.scenarios import flapping_server, late_server, uneven_answers
from tests.support.replicas import busy, replicas


def test_the_one_with_least_in_flight_is_picked() -> None:
    assert LeastBusy().pick(busy(replicas(4), 3, 1, 2, 5)).index == 1


@pytest.mark.parametrize(
    ("in_flight", "weights", "picked"),
    [((4, 6), (1, 2), 1), ((4, 9), (1, 2), 1), ((4, 10), (1, 2), 0), ((0, 0), (1, 2), 1), ((0, 2), (1, 2), 0)],
)
def test_weight_counts(in_flight: tuple[int, ...], weights: tuple[int, ...], picked: int) -> None:
    there = busy(replicas(2, weights=weights), *in_flight)
    assert LeastBusy().pick(there).index == picked


def test_of_equals_the_faster_one_is_picked() -> None:
    balancer, there = LeastBusy(), replicas(3)
    for replica, first_token_s in zip(there, (0.9, 0.1, 3.0), strict=True):
        replica.standing.first_token.add(first_token_s, 100.0)
    assert {balancer.pick(there, None, 100.0).index for _ in range(10)} == {1}


def test_replicas_that_are_about_as_fast_take_turns() -> None:
    balancer, there = LeastBusy(), replicas(3)
    for replica, first_token_s in zip(there, (0.30, 0.35, 0.45), strict=True):
        replica.standing.first_token.add(first_token_s, 100.0)
    assert Counter(balancer.pick(there, None, 100.0).index for _ in range(30)) == {0: 10, 1: 10, 2: 10}


def test_one_that_was_slow_once_is_tried_again() -> None:
    balancer, there = LeastBusy(), replicas(2)
    there[0].standing.first_token.add(0.3, 100.0)
    there[1].standing.first_token.add(30.0, 100.0)
    now = 100.0
    while balancer.pick(there, None, now) is there[0]:
        there[0].standing.first_token.add(0.3, now)
        now += 1.0
    assert now < 100.0 + 8 * HALF_LIFE_S


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_answers_of_uneven_length_fewer_wait_than_in_turn(seed: int) -> None:
    least, turns = uneven_answers(lambda rng: LeastBusy(), seed), uneven_answers(lambda rng: RoundRobin(), seed)
    assert least.p99 < 0.75 * turns.p99
    assert max(least.most_at_once) < max(turns.most_at_once)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slow_replica_does_not_slow_everybody(seed: int) -> None:
    speeds = (1.0, 1.0, 1.0, 0.33)
    least = uneven_answers(lambda rng: LeastBusy(), seed, speeds)
    turns = uneven_answers(lambda rng: RoundRobin(), seed, speeds)
    assert least.p99 < 1.0
    assert turns.p99 > 5.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_replica_that_joins_is_not_overrun(seed: int) -> None:
    seen = late_server(lambda rng: LeastBusy(), seed)
    assert seen.most_at_once[3] <= max(seen.most_at_once[:3])
    assert seen.p99 < 0.3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_replica_that_fails_at_once_is_idle_and_still_does_not_draw_everything(seed: int) -> None:
    without = flapping_server(lambda rng: LeastBusy(), seed, None)
    breaking = flapping_server(lambda rng: LeastBusy(), seed, BreakerRules())
    assert without.seen.failed > 100
    assert breaking.seen.failed == 0
    assert breaking.wasted < 0.1 * without.wasted
    pauses = [late - soon for soon, late in zip(breaking.opened, breaking.opened[1:], strict=False)]
    assert 1.5 * pauses[0] < pauses[1] < pauses[2] < min(pauses[3:])  # it flaps: it is left alone for longer
