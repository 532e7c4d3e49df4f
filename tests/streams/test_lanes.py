"""Lanes: in order within one, side by side between them, never too many at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.streams.lanes import LaneLimitReached, Lanes, LanesFull


def lanes(in_flight: int = 2, named: int = 3, waiting: int = 4, waiting_bytes: int = 100) -> Lanes[str]:
    return Lanes(in_flight=in_flight, named=named, waiting=waiting, waiting_bytes=waiting_bytes)


def test_a_lane_runs_one_after_the_other() -> None:
    held = lanes()
    assert held.add("a", "a1", 1)
    assert not held.add("a", "a2", 1)
    assert not held.add("a", "a3", 1)
    assert [held.ended("a"), held.ended("a"), held.ended("a")] == ["a2", "a3", None]
    assert held.idle


def test_lanes_run_side_by_side_the_one_without_a_name_among_them() -> None:
    held = lanes(in_flight=4)
    assert [held.add(lane, "x", 1) for lane in (None, "a", "b", "c")] == [True] * 4


def test_one_more_than_may_run_waits_and_whoever_waited_longest_begins() -> None:
    held = lanes(in_flight=2)
    assert held.add("a", "a1", 1)
    assert held.add("b", "b1", 1)
    assert not held.add("c", "c1", 1)
    assert not held.add("a", "a2", 1)
    assert not held.add(None, "n1", 1)
    assert held.ended("a") == "c1"
    assert held.ended("c") == "n1"
    assert held.ended("b") == "a2"
    assert [held.ended("a"), held.ended(None)] == [None, None]


def test_a_lane_more_than_may_have_names_is_refused_for_good() -> None:
    held = lanes(in_flight=9, named=3)
    for lane in "abc":
        held.add(lane, "x", 1)
        held.ended(lane)
    with pytest.raises(LaneLimitReached) as refused:
        held.add("d", "x", 1)
    assert (refused.value.status, refused.value.code, refused.value.param) == (
        400,
        "websocket_stream_limit_reached",
        "stream_id",
    )
    assert held.add("a", "x", 1)
    assert held.add(None, "x", 1)


@pytest.mark.parametrize(("waiting", "waiting_bytes"), [(2, 100), (9, 20)])
def test_what_waits_is_bounded_in_number_and_bytes(waiting: int, waiting_bytes: int) -> None:
    held = lanes(waiting=waiting, waiting_bytes=waiting_bytes)
    held.add("a", "a1", 99)  # it runs: it does not wait
    held.add("a", "a2", 10)
    held.add("a", "a3", 10)
    with pytest.raises(LanesFull) as refused:
        held.add("a", "a4", 1)
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert held.ended("a") == "a2"
    assert not held.add("a", "a4", 10)


def test_the_current_one_is_what_runs_or_what_waits_first() -> None:
    held = lanes(in_flight=1)
    assert held.current("a") is None
    held.add("a", "a1", 1)
    held.add("a", "a2", 1)
    held.add("b", "b1", 1)
    assert (held.current("a"), held.current("b")) == ("a1", "b1")


def test_a_withdrawn_one_does_not_begin() -> None:
    held = lanes(in_flight=1)
    for lane, item in (("a", "a1"), ("b", "b1"), ("b", "b2"), ("c", "c1")):
        held.add(lane, item, 1)
    held.withdraw("b")
    assert held.current("b") == "b2"
    held.withdraw("b")
    assert held.current("b") is None
    assert held.ended("a") == "c1"


def test_all_that_waits_can_be_dropped() -> None:
    held = lanes(in_flight=1)
    for lane, item in (("a", "a1"), ("b", "b1"), ("b", "b2"), ("a", "a2")):
        held.add(lane, item, 1)
    assert sorted(held.clear()) == ["a2", "b1", "b2"]
    assert held.ended("a") is None
    assert held.idle


ACTS = st.lists(st.tuples(st.sampled_from(["add", "end", "withdraw"]), st.sampled_from([None, "a", "b", "c"])))


@given(ACTS, st.integers(1, 3))
def test_whatever_happens_order_and_limits_hold(acts: list[tuple[str, str | None]], in_flight: int) -> None:
    held: Lanes[tuple[str | None, int]] = Lanes(in_flight=in_flight, named=3, waiting=1000, waiting_bytes=1000)
    running: set[str | None] = set()
    expected: dict[str | None, list[int]] = {None: [], "a": [], "b": [], "c": []}

    def begins(item: tuple[str | None, int]) -> None:
        lane, number = item
        assert lane not in running
        assert expected[lane].pop(0) == number
        running.add(lane)
        assert len(running) <= in_flight

    for number, (act, lane) in enumerate(acts):
        if act == "add":
            expected[lane].append(number)
            if held.add(lane, (lane, number), 1):
                begins((lane, number))
        elif act == "end" and lane in running:
            running.discard(lane)
            following = held.ended(lane)
            if following is not None:
                begins(following)
        elif act == "withdraw" and lane not in running and expected[lane]:
            assert held.current(lane) == (lane, expected[lane].pop(0))
            held.withdraw(lane)
        could_run = [each for each in expected if expected[each] and each not in running]
        assert not could_run or len(running) == in_flight
    assert held.idle == (not running)
