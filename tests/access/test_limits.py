"""What a key may use: requests and tokens a minute, streams at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.limits import Allowance, Allowances, Bucket, KeyRules


def allowance(requests: int | None = None, tokens: int | None = None, streams: int | None = None) -> Allowance:
    return Allowance(KeyRules(requests, tokens, streams), 100.0)


def taken(limits: Allowance, times: int, now: float, estimated_tokens: int = 0) -> int:
    """How many of so many requests are let in; each is over at once."""
    count = 0
    for _ in range(times):
        if limits.take(estimated_tokens, now) is None:
            limits.give_back(estimated_tokens, estimated_tokens, now)
            count += 1
    return count


def test_a_key_without_limits_may_do_as_it_likes() -> None:
    assert taken(allowance(), 10_000, 100.0, 10_000) == 10_000


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    limits = allowance(requests=60)
    assert taken(limits, 100, 100.0) == 60
    assert taken(limits, 10, 101.0) == 1
    assert taken(limits, 10, 103.5) == 2
    assert taken(limits, 10, 104.0) == 1
    assert taken(limits, 100, 1000.0) == 60


def test_too_many_requests_are_told_when_to_come_back() -> None:
    limits = allowance(requests=6)
    assert taken(limits, 6, 100.0) == 6
    refusal = limits.take(0, 101.0)
    assert refusal is not None
    assert (refusal.code, refusal.status, refusal.retry_after_s) == ("rate_limit_exceeded", 429, 9.0)
    assert refusal.message == "This key may use 6 requests a minute, and has: try again in 9 s."
    assert taken(limits, 1, 110.0) == 1


def test_tokens_are_counted_when_the_answer_is_over() -> None:
    limits = allowance(tokens=600)
    assert limits.take(100, 100.0) is None
    limits.give_back(100, 700, 100.0)
    refusal = limits.take(1, 100.0)
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_s) == ("rate_limit_exceeded", 11.0)
    assert refusal.message == "This key may use 600 tokens a minute, and has: try again in 11 s."
    assert limits.take(1, 111.0) is None


def test_an_estimate_that_was_too_high_is_given_back() -> None:
    limits = allowance(tokens=600)
    assert limits.take(600, 100.0) is None
    assert limits.take(1, 100.0) is not None
    limits.give_back(600, 20, 100.0)
    assert limits.take(579, 100.0) is None


def test_a_prompt_larger_than_a_minutes_tokens_still_passes() -> None:
    limits = allowance(tokens=600)
    assert limits.take(5000, 100.0) is None
    limits.give_back(5000, 5200, 100.0)
    assert limits.take(1, 100.0 + 459) is not None
    assert limits.take(1, 100.0 + 461) is None


def test_many_prompts_at_once_are_counted_before_their_answers() -> None:
    limits = allowance(tokens=1000)
    assert sum(limits.take(300, 100.0) is None for _ in range(50)) == 4


def test_streams_at_once_are_counted() -> None:
    limits = allowance(streams=2)
    assert [limits.take(0, 100.0) is None for _ in range(3)] == [True, True, False]
    refusal = limits.take(0, 100.0)
    assert refusal is not None
    assert (refusal.code, refusal.status, refusal.retry_after_s) == ("too_many_streams", 429, 1.0)
    assert refusal.message == "This key may have 2 streams at once, and has: end one, or wait for one."
    limits.give_back(0, 0, 101.0)
    assert limits.take(0, 101.0) is None
    assert limits.streams == 2


@pytest.mark.parametrize("limits", [allowance(requests=5, streams=1), allowance(tokens=5, streams=1)])
def test_what_is_refused_costs_nothing(limits: Allowance) -> None:
    assert limits.take(1, 100.0) is None
    for _ in range(50):
        assert limits.take(1, 100.0) is not None
    limits.give_back(1, 1, 100.0)
    assert taken(limits, 50, 100.0, 1) == 4


def test_a_reload_changes_limits_and_keeps_what_was_used() -> None:
    limits = allowance(requests=10)
    assert taken(limits, 8, 100.0) == 8
    limits.change(KeyRules(requests_per_minute=20), 100.0)
    assert taken(limits, 50, 100.0) == 12
    limits.change(KeyRules(requests_per_minute=10), 100.0)
    refusal = limits.take(0, 100.0)
    assert refusal is not None
    assert refusal.retry_after_s == 66.0
    limits.change(KeyRules(), 100.0)
    assert taken(limits, 50, 100.0) == 50
    limits.change(KeyRules(requests_per_minute=3), 100.0)
    assert taken(limits, 50, 100.0) == 3


def test_keys_have_their_own_allowances_and_a_reload_keeps_them() -> None:
    keys = Allowances()
    keys.change({"web": KeyRules(requests_per_minute=2), "batch": KeyRules(streams=1), "free": KeyRules()}, 100.0)
    web = keys.of("web")
    assert web is not None
    assert taken(web, 5, 100.0) == 2
    assert keys.of("free") is None
    assert keys.of(None) is None
    keys.change({"web": KeyRules(requests_per_minute=3), "free": KeyRules(streams=1)}, 100.0)
    assert keys.of("web") is web
    assert taken(web, 5, 100.0) == 1
    assert keys.of("batch") is None
    assert keys.of("free") is not None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(60, 100.0)
    bucket.draw(60, 100.0)
    assert bucket.level(50.0) == 0.0
    assert bucket.level(101.0) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 5)), max_size=200))
def test_nobody_gets_more_than_a_minutes_worth_and_what_flows_in(steps: list[tuple[float, int]]) -> None:
    limits, now, got = allowance(requests=12), 100.0, 0
    for pause_s, times in steps:
        now += pause_s
        got += taken(limits, times, now)
        assert got <= 12 + (now - 100.0) * 12 / 60 + 1e-6
