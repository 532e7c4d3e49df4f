"""When a tool server is started again."""

from __future__ import annotations

from proxy.toolchain.restarts import LONGEST_PAUSE_S, Restarts


def test_a_server_that_never_failed_may_start() -> None:
    assert Restarts().pause_s(0.0) == 0


def test_it_starts_again_at_once_and_then_after_growing_pauses() -> None:
    restarts = Restarts()
    pauses = []
    for _ in range(9):
        restarts.failed(100.0)
        pauses.append(restarts.pause_s(100.0))
    assert pauses == [0, 1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_a_pause_passes() -> None:
    restarts = Restarts()
    restarts.failed(100.0)
    restarts.failed(100.0)
    assert restarts.pause_s(100.75) == 0.25
    assert restarts.pause_s(101.0) == 0


def test_an_answered_call_ends_the_row() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.failed(100.0)
    restarts.answered()
    assert restarts.pause_s(100.0) == 0
    restarts.failed(100.0)
    assert restarts.pause_s(100.0) == 0
