"""One after the other."""

from __future__ import annotations

from collections import Counter

import pytest

from proxy.routing.balancing.round_robin import RoundRobin
from tests.support.replicas import replicas


def test_it_goes_through_the_file_in_order_and_begins_again() -> None:
    balancer, there = RoundRobin(), replicas(3)
    assert [balancer.pick(there).index for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_weights_are_turns_spread_evenly() -> None:
    balancer, there = RoundRobin(), replicas(3, weights=[1, 4, 1])
    assert [balancer.pick(there).index for _ in range(6)] == [1, 0, 1, 1, 2, 1]


@pytest.mark.parametrize("weights", [[1, 1], [1, 2, 3], [5, 1, 1, 7]])
def test_each_gets_exactly_its_share_of_a_round(weights: list[int]) -> None:
    balancer, there = RoundRobin(), replicas(len(weights), weights=weights)
    for _ in range(5):
        counts = Counter(balancer.pick(there).index for _ in range(sum(weights)))
        assert [counts[index] for index in range(len(weights))] == weights


def test_it_goes_on_when_a_replica_is_left_out_and_comes_back() -> None:
    balancer, there = RoundRobin(), replicas(3)
    balancer.pick(there)
    without = Counter(balancer.pick([there[0], there[2]]).index for _ in range(40))
    assert abs(without[0] - without[2]) <= 2
    back = Counter(balancer.pick(there).index for _ in range(30))
    assert max(back.values()) - min(back.values()) <= 2


def test_two_routes_take_their_own_turns() -> None:
    one, other, there = RoundRobin(), RoundRobin(), replicas(2)
    one.pick(there)
    assert other.pick(there) is there[0]
