"""How a replica stands: what exchanges and probes tell of it."""

from __future__ import annotations

import pytest

from proxy.routing.breaker import BreakerRules, State
from proxy.routing.failure_kind import ANSWERED, COUNTED, UNTOLD, FailureKind
from proxy.routing.health_check import HealthRules
from proxy.routing.standing import LONGEST_REST_S, REST_S, Standing, Visit

ONE = BreakerRules(failures=1, within_s=30.0, open_for_s=10.0)


def test_a_visit_is_in_flight_until_it_is_over() -> None:
    standing = Standing()
    one, other = Visit(standing, 100.0), Visit(standing, 100.0)
    assert standing.in_flight == 2
    one.over()
    one.over()
    assert standing.in_flight == 1
    other.failed(FailureKind.BROKEN, 101.0)
    other.over()
    assert standing.in_flight == 0


def test_the_first_content_is_timed_once() -> None:
    standing = Standing(ONE)
    visit = Visit(standing, 100.0)
    visit.content(100.5)
    visit.content(109.0)
    assert standing.first_token.value(100.5) == 0.5


@pytest.mark.parametrize("kind", sorted(COUNTED))
@pytest.mark.parametrize("spoken", [False, True])
def test_a_failure_that_counts_opens_the_breaker_before_and_after_content(kind: FailureKind, spoken: bool) -> None:
    standing = Standing(ONE)
    visit = Visit(standing, 100.0)
    if spoken:
        visit.content(100.5)
    visit.over()  # the connection is often gone before anybody says why
    visit.failed(kind, 101.0)
    assert not standing.available(101.0)


@pytest.mark.parametrize("kind", sorted(ANSWERED | UNTOLD))
def test_what_is_not_the_replicas_fault_does_not(kind: FailureKind) -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).failed(kind, 101.0)
    assert standing.available(101.0)


@pytest.mark.parametrize("kind", sorted(ANSWERED))
def test_an_answer_is_an_answer_to_a_probe(kind: FailureKind) -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).failed(FailureKind.UNREACHABLE, 100.0)
    Visit(standing, 110.0).failed(kind, 110.0)
    assert standing.breaker_state(110.0) is State.CLOSED


@pytest.mark.parametrize("kind", sorted(UNTOLD))
def test_a_probe_that_tells_nothing_gives_its_place_back(kind: FailureKind) -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).failed(FailureKind.UNREACHABLE, 100.0)
    Visit(standing, 110.0).failed(kind, 110.0)
    assert (standing.breaker_state(110.0), standing.available(110.0)) == (State.HALF_OPEN, True)


def test_a_client_that_leaves_a_probe_gives_its_place_back() -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).failed(FailureKind.UNREACHABLE, 100.0)
    visit = Visit(standing, 110.0)
    assert not standing.available(110.0)
    visit.over()
    visit.left()
    assert standing.available(110.0)


def test_one_visit_fails_once() -> None:
    standing = Standing(BreakerRules(failures=2, within_s=30.0, open_for_s=10.0))
    visit = Visit(standing, 100.0)
    visit.failed(FailureKind.BROKEN, 100.0)
    visit.failed(FailureKind.BROKEN, 100.0)
    assert standing.breaker_state(100.0) is State.CLOSED


@pytest.mark.parametrize(("retry_after_s", "rest_s"), [(None, REST_S), (7.0, 7.0), (3600.0, LONGEST_REST_S)])
def test_a_replica_that_says_429_rests(retry_after_s: float | None, rest_s: float) -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).failed(FailureKind.TOO_MANY, 100.0, retry_after_s)
    assert standing.rests_until == 100.0 + rest_s
    assert standing.available(100.0)


def test_a_replica_that_probes_took_down_is_not_available() -> None:
    standing = Standing(None, HealthRules(fall=2, rise=1))
    assert [standing.probed(well=False, now=100.0) for _ in range(2)] == [False, True]
    assert (standing.up(), standing.available(100.0)) == (False, False)
    assert standing.probed(well=True, now=101.0)
    assert standing.available(101.0)


def test_without_breaker_and_health_checks_it_is_always_available() -> None:
    standing = Standing()
    for _ in range(50):
        Visit(standing, 100.0).failed(FailureKind.UNREACHABLE, 100.0)
    assert standing.probed(well=False, now=100.0) is False
    assert (standing.up(), standing.available(100.0), standing.breaker_state(100.0)) == (True, True, State.CLOSED)


def test_a_reload_takes_parts_away_and_brings_them_back() -> None:
    standing = Standing(ONE, HealthRules(fall=1, rise=1))
    Visit(standing, 100.0).failed(FailureKind.UNREACHABLE, 100.0)
    standing.probed(well=False, now=100.0)
    standing.change(ONE, HealthRules(fall=1, rise=3))
    assert (standing.breaker_state(100.0), standing.up()) == (State.OPEN, False)
    assert [standing.probed(well=True, now=101.0) for _ in range(3)] == [False, False, True]
    standing.change(None, None)
    assert standing.available(100.0)
    standing.change(ONE, HealthRules())
    assert (standing.breaker_state(100.0), standing.up()) == (State.CLOSED, True)


def test_a_visit_under_way_at_a_reload_still_counts_down() -> None:
    standing = Standing(ONE)
    visit = Visit(standing, 100.0)
    standing.change(None, None)
    visit.failed(FailureKind.BROKEN, 101.0)
    visit.over()
    assert (standing.in_flight, standing.available(101.0)) == (0, True)


def test_one_that_was_outrun_counts_as_slow_and_not_as_failed() -> None:
    standing = Standing(ONE)
    visit = Visit(standing, 100.0)
    visit.outrun(102.0)
    visit.over()
    assert standing.first_token.value(102.0) == 2.0
    assert (standing.breaker_state(102.0), standing.available(102.0), standing.in_flight) == (State.CLOSED, True, 0)


def test_one_that_was_outrun_at_once_is_not_the_faster_for_it() -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).content(101.0)
    Visit(standing, 101.0).outrun(101.1)
    assert standing.first_token.value(101.1) > 0.9


def test_a_probe_that_was_outrun_gives_its_place_back() -> None:
    standing = Standing(ONE)
    Visit(standing, 100.0).failed(FailureKind.UNREACHABLE, 100.0)
    Visit(standing, 110.0).outrun(112.0)
    assert (standing.breaker_state(112.0), standing.available(112.0)) == (State.HALF_OPEN, True)
