"""How many descriptors a client's own one leaves."""

from __future__ import annotations

import os
import resource
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.downstream.descriptors import Left, left_behind, left_of

ORDER = list(Left)


@pytest.mark.parametrize(
    ("descriptor", "left"),
    [(0, Left.ENOUGH), (895, Left.ENOUGH), (896, Left.FEW), (959, Left.FEW), (960, Left.RESERVED)],
)
def test_the_last_eighth_is_for_last_answers_and_half_of_that_for_no_client(descriptor: int, left: Left) -> None:
    assert left_of(1024, descriptor) is left


@given(st.integers(32, 1 << 20))
def test_of_any_number_most_are_for_clients_and_some_for_nobody(most: int) -> None:
    few = most - 2 * (most // 16)
    assert [left_of(most, each) for each in (few - 1, few, most - 1)] == [Left.ENOUGH, Left.FEW, Left.RESERVED]
    assert most * 3 // 4 < few


@given(st.integers(1, 4096), st.lists(st.integers(0, 4095), min_size=2).map(sorted))
def test_later_descriptors_leave_no_more(most: int, descriptors: list[int]) -> None:
    left = [ORDER.index(left_of(most, each)) for each in descriptors]
    assert all(before <= after for before, after in pairwise(left))


def test_it_is_this_process_that_is_asked_about() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert left_behind(soft - 1) is Left.RESERVED
    with open(os.devnull) as newest:
        assert left_behind(newest.fileno()) is Left.ENOUGH


def test_where_there_is_no_limit_there_are_always_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert left_behind(1 << 30) is Left.ENOUGH
