"""What is done after a failure: http.md's table, row by row, and one request's way through it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.failure_kind import FailureKind
from proxy.routing.replica import Replica
from proxy.routing.retry import (
    BACKOFF_S,
    RULES,
    Attempts,
    Fallback,
    Next,
    RetryRules,
    Step,
    fallback_routes,
)
from proxy.routing.retry_budget import LEAST, RetryBudget
from tests.support.replicas import fail, replicas

TRIED_AGAIN = [
    FailureKind.UNREACHABLE,
    FailureKind.BROKEN,
    FailureKind.SERVER_ERROR,
    FailureKind.ERROR_EVENT,
]
PASSED_ON = [FailureKind.REJECTED, FailureKind.INVALID, FailureKind.TIMED_OUT]
ELSEWHERE = Fallback("small")
LONGER = Fallback("long", (FailureKind.CONTEXT_LENGTH,))


def attempts(rules: RetryRules = RetryRules(), seed: int = 1) -> Attempts:  # noqa: B008 (frozen)
    return Attempts(rules, RetryBudget(), Random(seed))


def unbroken(count: int) -> list[Replica]:
    return replicas(count, breaker=None)


def test_every_kind_of_failure_has_a_row() -> None:
    assert set(RULES) == set(FailureKind)


@pytest.mark.parametrize("kind", [*TRIED_AGAIN, FailureKind.TOO_MANY, FailureKind.SILENT])
def test_another_replica_is_tried_at_once(kind: FailureKind) -> None:
    there, tries = unbroken(3), attempts()
    assert tries.after(kind, there[1], there, 100.0, retry_after_s=60.0) == Step(Next.TRY)
    assert [replica.index for replica in tries.candidates(there, 100.0)] == [0, 2]


@pytest.mark.parametrize("kind", TRIED_AGAIN)
def test_the_same_one_is_tried_after_a_backoff_if_there_is_no_other(kind: FailureKind) -> None:
    there, tries = unbroken(1), attempts(RetryRules(attempts=4))
    waits = []
    for _ in range(3):
        step = tries.after(kind, there[0], there, 100.0)
        assert step.next is Next.TRY
        assert list(tries.candidates(there, 100.0 + step.wait_s)) == there
        waits.append(step.wait_s)
    for number, wait_s in enumerate(waits):
        assert BACKOFF_S * 2**number / 2 <= wait_s <= BACKOFF_S * 2**number
    assert tries.after(kind, there[0], there, 100.0) == Step(Next.FALLBACK)


def test_backoffs_are_left_to_chance() -> None:
    waits = {
        attempts(seed=seed).after(FailureKind.UNREACHABLE, there[0], there, 100.0).wait_s
        for seed in range(20)
        for there in [unbroken(1)]
    }
    assert len(waits) == 20


@pytest.mark.parametrize("kind", PASSED_ON)
def test_what_would_fail_again_is_passed_on(kind: FailureKind) -> None:
    there = unbroken(3)
    assert attempts().after(kind, there[0], there, 100.0) == Step(Next.PASS_ON)
    assert fallback_routes([ELSEWHERE, LONGER], kind) == []


def test_a_silent_replica_is_never_asked_again() -> None:
    there, tries = unbroken(2), attempts(RetryRules(attempts=9))
    assert tries.after(FailureKind.SILENT, there[0], there, 100.0) == Step(Next.TRY)
    assert list(tries.candidates(there, 100.0)) == [there[1]]
    step = tries.after(FailureKind.UNREACHABLE, there[1], there, 100.0)
    assert step.next is Next.TRY
    assert step.wait_s > 0
    assert list(tries.candidates(there, 100.0)) == [there[1]]
    assert tries.after(FailureKind.SILENT, there[1], there, 100.0) == Step(Next.FALLBACK)
    assert list(tries.candidates(there, 100.0)) == []


@pytest.mark.parametrize(
    ("retry_after_s", "tried"), [(0.0, True), (2.0, True), (5.0, True), (5.1, False), (None, False)]
)
def test_a_429_is_tried_again_after_what_it_said_if_that_is_not_too_long(
    retry_after_s: float | None, tried: bool
) -> None:
    there, tries = unbroken(1), attempts()
    fail(there[0], FailureKind.TOO_MANY, 100.0, retry_after_s)
    step = tries.after(FailureKind.TOO_MANY, there[0], there, 100.0, retry_after_s=retry_after_s)
    assert step.next is (Next.TRY if tried else Next.FALLBACK)
    if tried:
        assert (retry_after_s or 0.0) <= step.wait_s <= 5.0


def test_a_503_that_says_when_to_come_back_is_believed() -> None:
    there = unbroken(1)
    step = attempts().after(FailureKind.SERVER_ERROR, there[0], there, 100.0, retry_after_s=3.0)
    assert step.next is Next.TRY
    assert 3.0 < step.wait_s <= 3.0 + BACKOFF_S
    step = attempts().after(FailureKind.SERVER_ERROR, there[0], there, 100.0, retry_after_s=30.0)
    assert step == Step(Next.FALLBACK)


def test_no_wait_is_longer_than_max_wait() -> None:
    there, tries = unbroken(1), attempts(RetryRules(attempts=9, max_wait_s=0.3))
    waits = [tries.after(FailureKind.UNREACHABLE, there[0], there, 100.0).wait_s for _ in range(5)]
    assert max(waits) == 0.3


def test_attempts_are_tries_in_all() -> None:
    there, tries = unbroken(5), attempts(RetryRules(attempts=3))
    steps = [tries.after(FailureKind.UNREACHABLE, replica, there, 100.0).next for replica in there[:3]]
    assert steps == [Next.TRY, Next.TRY, Next.FALLBACK]
    one = attempts(RetryRules(attempts=1))
    assert one.after(FailureKind.UNREACHABLE, there[0], there, 100.0) == Step(Next.FALLBACK)


def test_a_stale_connection_costs_a_replica_no_attempt_once() -> None:
    there, tries = unbroken(2), attempts(RetryRules(attempts=2))
    assert not tries.wants_fresh(FailureKind.UNREACHABLE, there[0])
    assert tries.wants_fresh(FailureKind.STALE, there[0])
    assert tries.after(FailureKind.UNREACHABLE, there[0], there, 100.0) == Step(Next.TRY)
    assert tries.wants_fresh(FailureKind.STALE, there[1])
    assert not tries.wants_fresh(FailureKind.STALE, there[1])
    assert tries.after(FailureKind.STALE, there[1], there, 100.0) == Step(Next.FALLBACK)


def test_replicas_that_may_not_be_asked_are_not_waited_for() -> None:
    there, tries = replicas(2), attempts()
    for replica in there:
        fail(replica, FailureKind.UNREACHABLE, 100.0)
    assert tries.after(FailureKind.UNREACHABLE, there[0], there, 100.0) == Step(Next.FALLBACK)


def test_one_that_said_429_to_others_is_tried_before_one_that_failed() -> None:
    there, tries = unbroken(2), attempts()
    fail(there[1], FailureKind.TOO_MANY, 99.0, retry_after_s=30.0)
    assert list(tries.candidates(there, 100.0)) == [there[0]]
    assert tries.after(FailureKind.UNREACHABLE, there[0], there, 100.0) == Step(Next.TRY)
    assert list(tries.candidates(there, 100.0)) == [there[1]]


def test_an_empty_budget_ends_the_tries_but_not_the_fallbacks() -> None:
    there, budget = unbroken(3), RetryBudget()
    for _ in range(LEAST):
        assert budget.spend(100.0)
    tries = Attempts(RetryRules(), budget, Random(1))
    assert tries.after(FailureKind.UNREACHABLE, there[0], there, 100.0) == Step(Next.FALLBACK)


def test_tries_that_are_not_made_cost_nothing() -> None:
    budget = RetryBudget()
    for _ in range(50):
        there, tries = unbroken(1), Attempts(RetryRules(), budget, Random(1))
        tries.after(FailureKind.SILENT, there[0], there, 100.0)
        tries.after(FailureKind.REJECTED, there[0], there, 100.0)
    assert sum(budget.spend(100.0) for _ in range(50)) == LEAST


def test_a_prompt_that_is_too_long_never_goes_to_the_same_model() -> None:
    there = unbroken(3)
    assert attempts().after(FailureKind.CONTEXT_LENGTH, there[0], there, 100.0) == Step(Next.FALLBACK)
    assert fallback_routes([ELSEWHERE, LONGER], FailureKind.CONTEXT_LENGTH) == ["long"]
    assert fallback_routes([ELSEWHERE], FailureKind.CONTEXT_LENGTH) == []


@pytest.mark.parametrize("kind", [None, *TRIED_AGAIN, FailureKind.TOO_MANY, FailureKind.SILENT])
def test_everything_else_falls_back_to_unmarked_routes_in_order(kind: FailureKind | None) -> None:
    assert fallback_routes([ELSEWHERE, LONGER, Fallback("tiny")], kind) == ["small", "tiny"]


@given(st.lists(st.tuples(st.sampled_from(sorted(FailureKind)), st.integers(0, 2)), max_size=40), st.integers(1, 6))
def test_no_request_is_tried_without_end(failures: list[tuple[FailureKind, int]], most: int) -> None:
    there, tries, made = unbroken(3), attempts(RetryRules(attempts=most)), 1
    for kind, index in failures:
        step = tries.after(kind, there[index], there, 100.0)
        if step.next in (Next.FALLBACK, Next.PASS_ON):
            break
        made += step.next is Next.TRY
        assert list(tries.candidates(there, 100.0 + step.wait_s))
    assert made <= most


# ---- a second one beside a silent one ----


def test_another_replica_may_be_asked_beside_a_silent_one() -> None:
    there, tries = unbroken(3), attempts()
    assert [other.index for other in tries.beside(there[1], there, 100.0)] == [0, 2]
    tries.failed(FailureKind.BROKEN, there[0])
    assert tries.after(FailureKind.SILENT, there[1], there, 100.0) == Step(Next.TRY)
    assert list(tries.candidates(there, 100.0)) == [there[2]]


def test_a_try_beside_another_is_one_of_the_attempts() -> None:
    there = unbroken(3)
    assert attempts(RetryRules(attempts=1)).beside(there[0], there, 100.0) == ()
    tries = attempts(RetryRules(attempts=2))
    assert tries.beside(there[0], there, 100.0)
    tries.failed(FailureKind.BROKEN, there[1])
    assert tries.after(FailureKind.SILENT, there[0], there, 100.0) == Step(Next.FALLBACK)


def test_a_try_beside_another_is_paid_for_if_there_is_one() -> None:
    budget = RetryBudget()
    tries = Attempts(RetryRules(), budget, Random(1))
    alone, there = unbroken(1), unbroken(2)
    for _ in range(50):
        assert not tries.beside(alone[0], alone, 100.0)
    assert sum(bool(tries.beside(there[0], there, 100.0)) for _ in range(50)) == LEAST
