"""Which replica gets the next request."""

from __future__ import annotations

from proxy.routing.balancer import RoundRobin
from proxy.routing.replica import Origin, Replica


def replicas(count: int) -> list[Replica]:
    return [Replica(index, Origin("http", "gpu", 8000 + index), "") for index in range(count)]


def test_round_robin_goes_through_the_file_in_order_and_begins_again() -> None:
    balancer, there = RoundRobin(), replicas(3)
    assert [balancer.pick(there).index for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_with_one_replica_always_picks_it() -> None:
    balancer, there = RoundRobin(), replicas(1)
    assert {balancer.pick(there).index for _ in range(3)} == {0}


def test_round_robin_goes_on_when_a_replica_is_left_out() -> None:
    balancer, there = RoundRobin(), replicas(3)
    assert balancer.pick(there) is there[0]
    picked = [balancer.pick([there[0], there[2]]).index for _ in range(4)]
    assert sorted(picked) == [0, 0, 2, 2]


def test_two_routes_take_their_own_turns() -> None:
    one, other, there = RoundRobin(), RoundRobin(), replicas(2)
    one.pick(there)
    assert other.pick(there) is there[0]
