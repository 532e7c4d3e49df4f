"""Load, and how much of it a preferred replica takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.balancing.load import BOUND, IDLE, has_room, load, most_load
from tests.support.replicas import busy, replicas


@pytest.mark.parametrize(("in_flight", "weight", "expected"), [(0, 1, 1.0), (3, 1, 4.0), (3, 2, 2.0), (0, 4, 0.25)])
def test_load_is_what_it_would_have_for_its_weight(in_flight: int, weight: int, expected: float) -> None:
    (replica,) = replicas(1, weights=[weight])
    replica.standing.in_flight = in_flight
    assert load(replica) == expected


def test_a_few_requests_are_no_load() -> None:
    there = busy(replicas(3), IDLE - 1, 0, 0)
    assert has_room(there) == list(there)
    assert has_room(busy(there, IDLE, 0, 0)) == there[1:]


def test_clearly_more_than_its_share_is_too_much() -> None:
    there = busy(replicas(4), 26, 20, 20, 20)
    assert most_load(there) == pytest.approx(BOUND * 87 / 4)
    assert has_room(there) == list(there)
    assert has_room(busy(there, 30, 20, 20, 20)) == there[1:]


def test_a_heavier_replica_takes_its_weights_worth() -> None:
    there = busy(replicas(2, weights=[1, 3]), 10, 30)
    assert has_room(there) == list(there)
    assert has_room(busy(there, 20, 20)) == there[1:]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), min_size=1, max_size=12))
def test_somebody_always_has_room(loads: list[tuple[int, int]]) -> None:
    there = replicas(len(loads), weights=[weight for _, weight in loads])
    assert has_room(busy(there, *[in_flight for in_flight, _ in loads]))
