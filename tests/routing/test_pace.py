"""The measured service rate, and what clients are told because of it."""

from __future__ import annotations

import pytest

from proxy.routing.pace import LATEST_S, SOONEST_S, UNKNOWN_S, Pace


def beating(gap_s: float, times: int) -> Pace:
    """A pace with departures so far apart, the last at 100."""
    pace = Pace()
    for number in range(times):
        pace.beat(100.0 - (times - 1 - number) * gap_s)
    return pace


def test_nothing_measured_is_said_so() -> None:
    assert Pace().wait_s(5, 100.0) == UNKNOWN_S
    assert beating(3.0, 1).wait_s(5, 100.0) == UNKNOWN_S


@pytest.mark.parametrize(("gap_s", "places", "wait_s"), [(0.5, 10, 5.0), (2.0, 3, 6.0), (0.3, 4, 2.0)])
def test_a_wait_is_the_places_times_the_gap_in_whole_seconds(gap_s: float, places: int, wait_s: float) -> None:
    assert beating(gap_s, 5).wait_s(places, 100.0) == wait_s


def test_no_wait_is_shorter_or_longer_than_makes_sense() -> None:
    assert beating(0.001, 5).wait_s(1, 100.0) == SOONEST_S
    assert beating(30.0, 5).wait_s(100, 100.0) == LATEST_S


def test_the_rate_follows_what_happens() -> None:
    pace = beating(1.0, 5)
    for number in range(1, 60):
        pace.beat(100.0 + number * 0.1)
    assert pace.wait_s(100, 106.0) <= 15.0


def test_a_route_that_stands_still_says_so() -> None:
    assert beating(0.5, 5).wait_s(2, 110.0) == 20.0


def test_time_without_a_queue_says_nothing_of_the_rate() -> None:
    pace = beating(0.5, 5)
    pace.rest()
    assert pace.wait_s(4, 1000.0) == 2.0
    pace.beat(1000.0)
    pace.beat(1000.5)
    assert pace.wait_s(4, 1000.5) == 2.0
