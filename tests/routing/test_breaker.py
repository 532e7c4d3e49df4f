"""The circuit breaker: when it opens, whom it lets through, how long it waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.round_robin import RoundRobin
from proxy.routing.breaker import LONGEST_TIMES, Breaker, BreakerRules, State
from proxy.routing.health_check import HealthRules
from proxy.routing.standing import Standing
from scripts.simulation.scenarios import stalled_server

RULES = BreakerRules(failures=5, within_s=30.0, open_for_s=10.0)


def failing(breaker: Breaker, times: int, now: float, gap_s: float = 0.0) -> float:
    """So many requests fail, one after the other. When the last did."""
    for number in range(times):
        breaker.failed(breaker.enter(now + number * gap_s), now + number * gap_s)
    return now + (times - 1) * gap_s


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker(RULES)
    failing(breaker, 5, now)
    return breaker


def test_breaker_opens_after_five_failures() -> None:
    breaker = Breaker(RULES)
    failing(breaker, 4, 100.0)
    assert (breaker.state(100.0), breaker.admits(100.0)) == (State.CLOSED, True)
    failing(breaker, 1, 100.0)
    assert (breaker.state(100.0), breaker.admits(100.0)) == (State.OPEN, False)


def test_a_single_refused_connection_does_not_open_it() -> None:
    breaker = Breaker(RULES)
    failing(breaker, 1, 100.0)
    assert breaker.admits(100.0)


def test_failures_further_apart_than_within_do_not_open_it() -> None:
    breaker = Breaker(RULES)
    failing(breaker, 20, 100.0, gap_s=7.6)  # five of them take 30.4 s
    assert breaker.state(300.0) is State.CLOSED
    failing(breaker, 5, 400.0, gap_s=7.5)
    assert breaker.state(430.0) is State.OPEN


def test_failures_that_are_few_among_many_requests_do_not_open_it() -> None:
    breaker = Breaker(RULES)
    for number in range(1, 2001):
        ticket = breaker.enter(100.0)
        if number % 20 == 0:
            breaker.failed(ticket, 100.0)
        else:
            breaker.succeeded(ticket, 100.0)
    assert breaker.state(100.0) is State.CLOSED


def test_failures_of_every_fifth_request_open_it() -> None:
    breaker = Breaker(RULES)
    for _ in range(5):
        for _ in range(4):
            breaker.succeeded(breaker.enter(100.0), 100.0)
        failing(breaker, 1, 100.0)
    assert breaker.state(100.0) is State.OPEN


def test_half_open_lets_one_probe_through() -> None:
    breaker = opened(100.0)
    assert not breaker.admits(109.9)
    assert breaker.state(110.0) is State.HALF_OPEN
    assert breaker.admits(110.0)
    breaker.enter(110.0)
    assert not breaker.admits(110.0)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened(100.0)
    breaker.succeeded(breaker.enter(110.0), 111.0)
    assert breaker.state(111.0) is State.CLOSED
    failing(breaker, 4, 111.0)
    assert breaker.state(111.0) is State.CLOSED  # it begins to count anew


def test_a_probe_that_fails_opens_it_for_twice_as_long() -> None:
    breaker = opened(100.0)
    failing(breaker, 1, 110.0)
    assert not breaker.admits(129.9)
    assert breaker.admits(130.0)


def test_a_probe_whose_client_left_makes_room_for_another() -> None:
    breaker = opened(100.0)
    breaker.left(breaker.enter(110.0))
    assert breaker.admits(110.0)


def test_a_probe_never_heard_of_again_does_not_hold_the_place_for_ever() -> None:
    breaker = opened(100.0)
    breaker.enter(110.0)
    assert not breaker.admits(119.9)
    assert breaker.admits(120.0)


def test_what_was_under_way_before_does_not_speak_for_the_probe() -> None:
    breaker = Breaker(RULES)
    old = breaker.enter(99.0)
    failing(breaker, 5, 100.0)
    breaker.succeeded(old, 101.0)
    assert breaker.state(101.0) is State.OPEN
    probe = breaker.enter(110.0)
    breaker.failed(old, 110.5)
    breaker.left(old)
    assert not breaker.admits(110.5)
    breaker.succeeded(probe, 111.0)
    breaker.failed(old, 112.0)
    assert breaker.state(112.0) is State.CLOSED


def test_flapping_is_damped_and_the_damping_is_capped() -> None:
    breaker, now, pauses = Breaker(RULES), 100.0, []
    for _ in range(7):
        failing(breaker, 5, now)
        pauses.append(breaker.retry_at() - now)
        now = breaker.retry_at()
        breaker.succeeded(breaker.enter(now), now)  # it comes back, and fails again at once
    assert pauses == [10.0, 20.0, 40.0, 80.0, 80.0, 80.0, 80.0]
    assert max(pauses) == LONGEST_TIMES * RULES.open_for_s


def test_a_replica_that_was_well_for_long_has_a_clean_sheet() -> None:
    breaker = opened(100.0)
    breaker.succeeded(breaker.enter(110.0), 110.0)
    failing(breaker, 5, 200.0)
    assert breaker.retry_at() == 210.0


def test_a_health_check_that_sees_it_back_ends_the_wait() -> None:
    standing = Standing(RULES, HealthRules(fall=1, rise=2))
    assert standing.breaker is not None
    failing(standing.breaker, 5, 100.0)
    standing.probed(well=False, now=101.0)
    assert standing.probed(well=True, now=102.0) is False
    assert standing.breaker_state(102.0) is State.OPEN
    assert standing.probed(well=True, now=103.0) is True
    assert standing.breaker_state(103.0) is State.HALF_OPEN


def test_a_probe_that_failed_holds_no_place_when_a_health_check_sees_it_back() -> None:
    breaker = opened(100.0)
    failing(breaker, 1, 110.0)
    breaker.recovered(111.0)
    assert breaker.admits(111.0)


def test_a_health_check_does_not_open_or_hurry_a_closed_one() -> None:
    breaker = Breaker(RULES)
    breaker.recovered(100.0)
    assert breaker.state(100.0) is State.CLOSED


def test_a_reload_changes_the_rules_and_keeps_what_is_known() -> None:
    breaker = Breaker(RULES)
    failing(breaker, 2, 100.0)
    breaker.change(BreakerRules(failures=3, within_s=30.0, open_for_s=4.0))
    failing(breaker, 1, 101.0)
    assert breaker.state(101.0) is State.OPEN
    assert breaker.retry_at() == 105.0


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_its_rules_say_how_many_failures(failures: int) -> None:
    breaker = Breaker(BreakerRules(failures, 30.0, 10.0))
    failing(breaker, failures, 100.0)
    assert breaker.state(100.0) is State.OPEN


@given(st.lists(st.tuples(st.sampled_from("efslr"), st.floats(0, 40)), max_size=60))
def test_whatever_happens_it_lets_a_request_through_sooner_or_later(steps: list[tuple[str, float]]) -> None:
    breaker, now, tickets = Breaker(RULES), 0.0, [0]
    for step, pause_s in steps:
        now += pause_s
        match step:
            case "e" if breaker.admits(now):
                tickets.append(breaker.enter(now))
            case "f":
                breaker.failed(tickets[-1], now)
            case "s":
                breaker.succeeded(tickets[-1], now)
            case "l":
                breaker.left(tickets[-1])
            case "r":
                breaker.recovered(now)
    assert breaker.retry_at() <= now + LONGEST_TIMES * RULES.open_for_s
    assert breaker.admits(max(now, breaker.retry_at()))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("balancer", [LeastBusy, RoundRobin])
def test_once_it_is_open_a_stalled_replica_is_hardly_felt(balancer: type[LeastBusy | RoundRobin], seed: int) -> None:
    stalled = stalled_server(lambda _: balancer(), seed)
    well = stalled_server(lambda _: balancer(), seed, stalls=False, since=stalled.opened)
    assert stalled.opened < 40.0  # it stalls from 30 on, and silence takes two seconds
    assert stalled.seen.p99 <= 1.5 * well.seen.p99
    assert (stalled.seen.failed, stalled.seen.answered) == (0, well.seen.answered)
    assert stalled.tries <= 1.02 * stalled.requests
