"""What counts as a stream that came in bursts, and how many make a route one that bursts."""

from __future__ import annotations

import pytest

from proxy.telemetry.bursts import STREAMS, Bursts, came_in_bursts


@pytest.mark.parametrize(
    ("events", "reads", "taken_s", "bursts"),
    [
        pytest.param(200, 200, 4.0, False, id="an event a read"),
        pytest.param(200, 120, 4.0, False, id="two together now and then"),
        pytest.param(200, 1, 4.0, True, id="held back to the end"),
        pytest.param(200, 10, 4.0, True, id="twenty together, twice a second"),
        pytest.param(2000, 200, 1.0, False, id="a model so fast that ten come together"),
        pytest.param(16, 1, 0.02, False, id="all of a short answer at once, and at once"),
        pytest.param(16, 1, 2.0, True, id="all of a short answer at once, late"),
        pytest.param(15, 1, 2.0, False, id="too short to tell"),
        pytest.param(0, 0, 2.0, False, id="nothing"),
    ],
)
def test_a_stream_came_in_bursts(events: int, reads: int, taken_s: float, bursts: bool) -> None:
    assert came_in_bursts(events, reads, taken_s) is bursts


def test_one_bursting_stream_among_others_is_chance() -> None:
    route = Bursts()
    assert [route.add(200, reads, 4.0) for reads in (200, 200, 10, 200)] == [False] * 4


def test_a_route_bursts_when_most_of_its_latest_streams_did() -> None:
    route = Bursts()
    assert [route.add(200, reads, 4.0) for reads in (200, 10, 10)] == [False, False, True]


def test_a_route_whose_upstream_was_mended_bursts_no_longer() -> None:
    route = Bursts()
    assert all(route.add(200, 10, 4.0) for _ in range(3 * STREAMS))
    told = [route.add(200, 200, 4.0) for _ in range(STREAMS)]
    assert told == [True] * (STREAMS // 2 - 1) + [False] * (STREAMS // 2 + 1)


def test_short_streams_change_nothing() -> None:
    route = Bursts()
    route.add(200, 10, 4.0)
    assert all(route.add(3, 3, 4.0) for _ in range(3 * STREAMS))
