"""Prompts go where their beginning has been: what is remembered, for how long, and at what price."""

from __future__ import annotations

from collections import Counter

import pytest

from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.load import IDLE
from proxy.routing.balancing.prefix import MOST_ENTRIES, MOST_PLACES, Prefix
from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica
from scripts.simulation.scenarios import conversations
from tests.support.replicas import busy, facts, replicas


def turns(*texts: str, repeat: int = 3000) -> RequestFacts:
    """A chat whose every message is so long."""
    return facts(messages=[{"role": "user", "content": text * repeat} for text in texts])


def test_the_next_turn_goes_where_the_last_one_was() -> None:
    balancer, there = Prefix(), replicas(4)
    homes = {name: balancer.pick(there, turns("s", name)) for name in "abcdefgh"}
    for more in ("x", "xy", "xyz"):
        for name, home in homes.items():
            assert balancer.pick(there, turns("s", name, *more)) is home


def test_new_prompts_go_where_least_is_in_flight() -> None:
    balancer, there = Prefix(), busy(replicas(3), 2, 0, 1)
    assert balancer.pick(there, turns("a")).index == 1
    assert balancer.pick(there, facts(messages=[{"role": "user", "content": "short"}])).index == 1
    assert balancer.pick(there).index == 1


def test_of_replicas_that_know_the_same_the_less_busy_one_is_picked() -> None:
    balancer, there = Prefix(), replicas(3)
    first = balancer.pick(there, turns("s", "a"))
    first.standing.in_flight = IDLE  # full enough: the same beginning is computed at a second one
    second = balancer.pick(there, turns("s", "b"))
    assert second is not first
    busy(there, *[2 if replica is first else 1 for replica in there])
    assert balancer.pick(there, turns("s", "c")) is second


def test_the_longest_beginning_counts_most() -> None:
    balancer, there = Prefix(), replicas(2)
    one = balancer.pick(there, turns("s", "a"))
    other = there[1 - one.index]
    one.standing.in_flight = IDLE
    assert balancer.pick(there, turns("s", "b")) is other
    one.standing.in_flight = 0
    other.standing.in_flight = IDLE - 1
    assert balancer.pick(there, turns("s", "b", "c")) is other
    assert balancer.pick(there, turns("s", "a", "c")) is one


def test_a_warm_replica_with_too_much_to_do_is_passed_over() -> None:
    balancer, there = Prefix(), replicas(3)
    home = balancer.pick(there, turns("a"))
    busy(there, *[40 if replica is home else 20 for replica in there])
    assert balancer.pick(there, turns("a", "b")) is not home


def test_one_prompt_that_everybody_sends_is_spread() -> None:
    balancer, there = Prefix(), replicas(4)
    for number in range(200):
        balancer.pick(there, turns("s", f"{number} ")).standing.in_flight += 1
    assert max(replica.standing.in_flight for replica in there) <= 1.25 * 200 / 4 + 1


def test_a_replica_that_may_not_be_asked_is_not_waited_for() -> None:
    balancer, there = Prefix(), replicas(3)
    home = balancer.pick(there, turns("a"))
    others = [replica for replica in there if replica is not home]
    assert balancer.pick(others, turns("a", "b")) in others
    assert balancer.pick(there, turns("a", "c")) in there


def test_what_it_remembers_is_bounded_and_the_least_recent_goes_first() -> None:
    balancer, there = Prefix(), replicas(2)
    kept = balancer.pick(there, turns("kept"))
    gone = turns("gone")
    balancer.pick(there, gone)
    for number in range(MOST_ENTRIES // 3):
        balancer.pick(there, facts(prompt=f"{number:08}" + "x" * 3200))
        if number % 1000 == 0:
            assert balancer.pick(there, turns("kept")) is kept
    assert balancer.entries() <= MOST_ENTRIES
    assert balancer.knows(turns("kept"))
    assert not balancer.knows(gone)


def test_a_beginning_is_remembered_at_a_few_replicas_only() -> None:
    balancer, there = Prefix(), replicas(MOST_PLACES + 4)
    for replica in there:
        balancer.pick([replica], turns("a"))
    warm = Counter[Replica]()
    for _ in range(50):
        warm[balancer.pick(there, turns("a"))] += 1
    assert set(warm) <= set(there[-MOST_PLACES:])


@pytest.mark.parametrize("seed", [1, 2])
def test_people_who_talk_wait_less_than_where_least_is_in_flight(seed: int) -> None:
    warm, cold = conversations(lambda rng: Prefix(), seed), conversations(lambda rng: LeastBusy(), seed)
    assert warm.warm > cold.warm + 0.1
    assert warm.p50 < 0.7 * cold.p50
    assert max(warm.most_at_once) <= max(cold.most_at_once) + 3
