"""The less loaded of two drawn by chance."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from proxy.routing.balancing.two_choices import TwoChoices
from scripts.simulation.scenarios import uneven_answers
from tests.support.replicas import busy, replicas


def test_of_two_the_less_loaded_one_is_picked() -> None:
    balancer, there = TwoChoices(Random(1)), busy(replicas(2), 4, 3)
    assert {balancer.pick(there).index for _ in range(50)} == {1}


def test_the_most_loaded_one_is_never_picked() -> None:
    balancer, there = TwoChoices(Random(1)), busy(replicas(5), 2, 9, 0, 1, 2)
    counts = Counter(balancer.pick(there).index for _ in range(500))
    assert counts[1] == 0
    assert counts[2] > counts[3] > counts[0] > 0


def test_idle_replicas_are_drawn_by_weight() -> None:
    balancer, there = TwoChoices(Random(1)), replicas(3, weights=[1, 2, 5])
    counts = Counter(balancer.pick(there).index for _ in range(8000))
    assert [counts[index] / 1000 for index in range(3)] == pytest.approx([1, 2, 5], rel=0.1)


def test_load_counts_by_weight() -> None:
    balancer, there = TwoChoices(Random(1)), busy(replicas(2, weights=[1, 4]), 2, 7)
    assert {balancer.pick(there).index for _ in range(50)} == {1}


def test_the_same_chance_gives_the_same_picks() -> None:
    there = replicas(8)
    one, other = TwoChoices(Random(7)), TwoChoices(Random(7))
    assert [one.pick(there).index for _ in range(50)] == [other.pick(there).index for _ in range(50)]


def test_gateways_that_do_not_know_of_each_other_do_not_all_find_the_same_one_idle() -> None:
    there = busy(replicas(10), 0, *[3] * 9)
    picked = Counter(TwoChoices(Random(seed)).pick(there).index for seed in range(100))
    assert picked[0] < 40


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_nearly_as_even_as_looking_at_all(seed: int) -> None:
    assert uneven_answers(TwoChoices, seed).p99 < 0.35
    assert uneven_answers(TwoChoices, seed, (1.0, 1.0, 1.0, 0.33)).p99 < 1.5
