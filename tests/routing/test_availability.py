"""Which replicas may be asked, and the words when none may."""

from __future__ import annotations

from proxy.routing.availability import UNKNOWN_S, available, unavailable
from proxy.routing.failure_kind import FailureKind
from proxy.routing.replica import Replica
from tests.support.replicas import fail, replicas


def indices(there: object) -> list[int]:
    assert isinstance(there, list)
    return [replica.index for replica in there if isinstance(replica, Replica)]


def test_all_may_be_asked_while_nothing_is_known_against_them() -> None:
    assert indices(available(replicas(3), 100.0)) == [0, 1, 2]


def test_open_ones_and_those_that_are_down_are_left_out() -> None:
    there = replicas(3)
    fail(there[0], FailureKind.UNREACHABLE, 100.0)
    there[2].standing.probed(well=False, now=100.0)
    assert indices(available(there, 100.0)) == [1]
    assert indices(available(there, 110.0)) == [0, 1]


def test_a_probe_under_way_keeps_others_out() -> None:
    there = replicas(2)
    fail(there[0], FailureKind.UNREACHABLE, 100.0)
    assert there[0].standing.breaker is not None
    there[0].standing.breaker.enter(110.0)
    assert indices(available(there, 110.0)) == [1]


def test_ones_that_said_429_come_last() -> None:
    there = replicas(3)
    fail(there[0], FailureKind.TOO_MANY, 100.0, retry_after_s=3.0)
    assert indices(available(there, 102.9)) == [1, 2]
    assert indices(available(there, 103.0)) == [0, 1, 2]
    for replica in there:
        fail(replica, FailureKind.TOO_MANY, 104.0, retry_after_s=3.0)
    assert indices(available(there, 104.0)) == [0, 1, 2]


def test_a_503_says_how_many_are_out_and_when_to_come_back() -> None:
    there = replicas(4)
    fail(there[0], FailureKind.UNREACHABLE, 100.0)
    fail(there[1], FailureKind.BROKEN, 103.5)
    fail(there[2], FailureKind.BROKEN, 94.0)
    assert there[2].standing.breaker is not None
    there[2].standing.breaker.enter(105.0)
    there[3].standing.probed(well=False, now=100.0)
    error = unavailable("chat", there, 106.2)
    assert error.message == ('route "chat": no replica available (2 open, 1 half-open, 1 down); retry after 4 s')
    assert (error.status, error.code, error.retry_after_s) == (503, "no_replica_available", 4.0)


def test_a_503_for_replicas_that_are_down_cannot_know() -> None:
    there = replicas(2)
    for replica in there:
        replica.standing.probed(well=False, now=100.0)
    error = unavailable("chat", there, 106.0)
    assert error.message == 'route "chat": no replica available (2 down); retry after 5 s'
    assert error.retry_after_s == UNKNOWN_S


def test_a_503_after_every_replica_was_tried_says_so() -> None:
    assert "(none left to try)" in unavailable("chat", replicas(2), 100.0).message
