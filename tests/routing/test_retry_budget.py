"""The retry budget: a fifth of the requests, or ten in ten seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.breaker import BreakerRules
from proxy.routing.retry_budget import LEAST, SHARE, RetryBudget
from scripts.simulation.gateway import Unlimited
from scripts.simulation.scenarios import outage


def granted(budget: RetryBudget, now: float, asked: int = 1000) -> int:
    return sum(budget.spend(now) for _ in range(asked))


def test_a_quiet_gateway_has_ten() -> None:
    assert granted(RetryBudget(), 100.0) == 10


def test_a_busy_one_has_a_fifth_of_its_requests() -> None:
    budget = RetryBudget()
    for number in range(1000):
        budget.request(95.0 + number / 200)
    assert granted(budget, 100.0) == 200


def test_it_comes_back_after_ten_seconds() -> None:
    budget = RetryBudget()
    assert granted(budget, 100.0) == 10
    assert granted(budget, 109.9) == 0
    assert granted(budget, 110.0) == 10


def test_requests_of_long_ago_give_no_right() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.request(100.0)
    assert granted(budget, 200.0) == 10


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_in_no_ten_seconds_are_there_more(steps: list[tuple[float, bool]]) -> None:
    budget, now = RetryBudget(), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for pause_s, is_request in steps:
        now += pause_s
        if is_request:
            budget.request(now)
            requests.append(now)
        elif budget.spend(now):
            retries.append(now)
        within = [moment for moment in retries if moment > now - 9.0]
        recent = [moment for moment in requests if moment > now - 10.0]
        assert len(within) <= max(LEAST, len(recent) * SHARE + 1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_outage_gets_no_more_than_a_fifth_on_top(seed: int) -> None:
    requests, tries = outage(RetryBudget(), seed)
    assert sum(tries[20:40]) <= 1.32 * sum(requests[20:40])  # the fifth of the calm before it, too
    _, unlimited = outage(Unlimited(), seed)
    assert sum(unlimited[20:40]) > 2.9 * sum(requests[20:40])


def test_with_breakers_an_outage_gets_next_to_nothing() -> None:
    requests, tries = outage(RetryBudget(), 1, BreakerRules())
    assert sum(tries[21:40]) < 0.02 * sum(requests[21:40])
    assert sum(tries[51:60]) == sum(requests[51:60])  # and all is well again after it


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_over_all_there_are_no_more_than_a_fifth_on_top(seed: int) -> None:
    requests, tries = outage(RetryBudget(), seed)
    assert sum(tries) <= (1 + SHARE) * sum(requests)
