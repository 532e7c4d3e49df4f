"""The record of one request: what it holds, and that it ends once."""

from __future__ import annotations

import pytest

from proxy import errors
from proxy.telemetry.attempt import Attempt, Outcome
from proxy.telemetry.record import EndState, Phase, RequestRecord, end_state_of


def record(status: int | None = None) -> RequestRecord:
    return RequestRecord("req_1", "POST", "/v1/chat/completions", started=100.0, status=status)


def test_times_count_from_the_start_in_milliseconds() -> None:
    request = record()
    request.add_queue_time(entered=100.010, now=100.030)
    request.mark_first_token(100.1324)
    request.finish(EndState.COMPLETED, 104.1)
    assert (request.queue_ms, request.ttft_ms, request.duration_ms) == (20.0, 132.4, 4100.0)


def test_waits_in_several_queues_add_up() -> None:
    request = record()
    request.add_queue_time(100.0, 100.5)
    request.add_queue_time(101.0, 101.25)
    assert request.queue_ms == 750.0


def test_only_the_first_token_is_the_first() -> None:
    request = record()
    request.mark_first_token(101.0)
    request.mark_first_token(102.0)
    assert request.ttft_ms == 1000.0


def test_the_last_event_is_the_last() -> None:
    request = record()
    request.mark_last_event(101.0)
    request.mark_last_event(102.25)
    assert request.last_event_ms == 2250.0


def test_attempts_come_to_something_one_after_the_other() -> None:
    request = record()
    request.begin_attempt("chat", 1)
    assert (request.attempts, request.replica, request.phase, request.attempted) == (1, 1, Phase.CONNECT, [])
    request.end_attempt(Outcome.RESET)
    request.begin_attempt("spare", 0)
    request.end_attempt(Outcome.OK)
    assert (request.attempts, request.replica) == (2, 0)
    assert request.attempted == [Attempt("chat", 1, Outcome.RESET), Attempt("spare", 0, Outcome.OK)]


def test_an_attempt_comes_to_one_thing() -> None:
    request = record()
    request.end_attempt(Outcome.OK)
    request.begin_attempt("chat", 0)
    request.end_attempt(Outcome.TRUNCATED)
    request.end_attempt(Outcome.OK)
    assert request.attempted == [Attempt("chat", 0, Outcome.TRUNCATED)]


def test_an_attempt_that_is_left_comes_to_nothing() -> None:
    request = record()
    request.begin_attempt("chat", 0)
    request.finish(EndState.CLIENT_CLOSED, 101.0)
    assert (request.attempts, request.attempted) == (1, [])


def test_a_request_begins_with_its_body() -> None:
    assert record().phase is Phase.BODY
    assert [str(phase) for phase in Phase] == [
        "body",
        "queue",
        "connect",
        "headers",
        "first_event",
        "stream",
        "response",
    ]


def test_rounds_add_up() -> None:
    record, other = RequestRecord("r", "POST", "/", 0.0), RequestRecord("r", "POST", "/", 5.0)
    for each, replica in ((record, 0), (other, 1)):
        each.begin_attempt("m", replica)
        each.end_attempt(Outcome.OK)
        each.events, each.reads, each.tokens_in, each.tokens_out = 3, 2, 10, 4
        each.add_queue_time(0.0, 0.02)
        each.mark_first_token(6.0)
        each.mark_last_event(7.0)
    other.tokens_estimated = True
    record.add_round(other)
    assert (record.attempts, record.replica, record.queue_ms, record.events) == (2, 1, 40.0, 6)
    assert record.attempted == [("m", 0, Outcome.OK), ("m", 1, Outcome.OK)]
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (20, 8, True)
    assert (record.ttft_ms, record.reads, record.last_event_ms) == (6000.0, None, None)


def test_a_round_that_nothing_is_known_of_adds_nothing() -> None:
    record, other = RequestRecord("r", "POST", "/", 0.0), RequestRecord("r", "POST", "/", 5.0)
    record.begin_attempt("m", 1)
    record.add_round(other)
    assert (record.attempts, record.replica, record.tokens_in, record.tokens_out) == (1, 1, None, None)
    other.tokens_in = 7
    record.add_round(other)
    assert (record.tokens_in, record.tokens_out) == (7, 0)


def test_a_record_is_finished_once() -> None:
    request = record(status=200)
    assert request.finish(EndState.UPSTREAM_IDLE, 101.0)
    assert not request.finish(EndState.CLIENT_CLOSED, 102.0)
    assert (request.end_state, request.duration_ms, request.status) == (EndState.UPSTREAM_IDLE, 1000.0, 200)


def test_a_client_that_left_is_logged_as_499_whatever_it_had_been_sent() -> None:
    request = record(status=200)
    request.finish(EndState.CLIENT_CLOSED, 101.0)
    assert request.status == 499


def test_a_request_that_named_none_of_ours_counts_as_unknown() -> None:
    assert (record().route, record().model) == ("unknown", "unknown")


def test_a_misspelt_member_is_an_error() -> None:
    with pytest.raises(AttributeError):
        record().tokens_inn = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cause", "end"),
    [
        (errors.InvalidRequest("no model"), EndState.REJECTED),
        (errors.Unauthorized("who"), EndState.REJECTED),
        (errors.ModelNotFound("which"), EndState.REJECTED),
        (errors.UpgradeRequired("426"), EndState.REJECTED),
        (errors.Unavailable("none"), EndState.SHED),
        (errors.Unavailable("bye", code="draining"), EndState.SHED),
        (errors.UpstreamUnreachable("refused"), EndState.UPSTREAM_ERROR),
        (errors.StaleConnection("stale"), EndState.UPSTREAM_ERROR),
        (errors.UpstreamInvalid("garbage"), EndState.UPSTREAM_ERROR),
        (errors.UpstreamTimeout("total"), EndState.UPSTREAM_ERROR),
        (errors.UpstreamTruncated("cut"), EndState.UPSTREAM_TRUNCATED),
        (errors.UpstreamIdle("silent"), EndState.UPSTREAM_IDLE),
        (errors.FirstTokenTimeout("slow"), EndState.FIRST_TOKEN_TIMEOUT),
        (errors.InternalError("ours"), EndState.ERROR),
        (ZeroDivisionError(), EndState.ERROR),
    ],
)
def test_an_error_of_ours_is_an_end(cause: BaseException, end: EndState) -> None:
    assert end_state_of(cause) is end


def test_every_error_of_ours_has_an_end_that_is_no_success() -> None:
    waiting = [errors.GatewayError]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        unsaid = kind.__new__(kind)  # each has an __init__ of its own
        assert end_state_of(unsaid) not in (EndState.COMPLETED, EndState.CLIENT_CLOSED)


def test_a_429_of_ours_is_shed() -> None:
    class TooMany(errors.ClientError):
        status = 429

    assert end_state_of(TooMany("later")) is EndState.SHED


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (200, EndState.COMPLETED),
        (201, EndState.COMPLETED),
        (400, EndState.UPSTREAM_REJECTED),
        (429, EndState.UPSTREAM_REJECTED),
        (499, EndState.UPSTREAM_REJECTED),
        (500, EndState.UPSTREAM_ERROR),
        (503, EndState.UPSTREAM_ERROR),
    ],
)
def test_an_upstreams_status_is_an_end(status: int, end: EndState) -> None:
    assert end_state_of(status) is end


def test_the_end_states_are_the_metrics_outcomes() -> None:
    assert [str(state) for state in EndState] == [
        "completed",
        "client_closed",
        "rejected",
        "upstream_rejected",
        "shed",
        "upstream_error",
        "upstream_truncated",
        "upstream_idle",
        "first_token_timeout",
        "drained",
        "error",
    ]


# ---- attempts beside each other, and after a break ----


def test_what_came_of_an_attempt_beside_the_one_under_way_is_kept() -> None:
    record = RequestRecord("r", "POST", "/", 0.0)
    record.begin_attempt("chat", 0)
    record.begin_attempt("chat", 1)
    record.end_attempt(Outcome.TIMEOUT, ("chat", 0))
    record.end_attempt(Outcome.OK)
    record.end_attempt(Outcome.OK)
    assert record.attempted == [("chat", 0, Outcome.TIMEOUT), ("chat", 1, Outcome.OK)]


def test_the_attempt_that_goes_on_is_the_one_that_ends() -> None:
    record = RequestRecord("r", "POST", "/", 0.0)
    record.begin_attempt("chat", 0)
    record.begin_attempt("chat", 1)
    record.end_attempt(Outcome.STATUS, ("chat", 1))
    record.attempt_goes_on("chat", 0)
    record.end_attempt(Outcome.OK)
    assert (record.attempts, record.replica) == (2, 0)
    assert record.attempted == [("chat", 1, Outcome.STATUS), ("chat", 0, Outcome.OK)]


def test_attempts_of_a_continuation_are_added() -> None:
    record, later = RequestRecord("r", "POST", "/", 0.0), RequestRecord("r", "POST", "/", 0.0)
    record.route = "chat"
    record.begin_attempt("chat", 0)
    record.end_attempt(Outcome.TRUNCATED)
    record.add_attempts(later)
    assert (record.route, record.replica, record.attempts) == ("chat", 0, 1)
    later.route = "small"
    later.begin_attempt("small", 2)
    later.end_attempt(Outcome.OK)
    record.add_attempts(later)
    assert (record.route, record.replica, record.attempts) == ("small", 2, 2)
    assert record.attempted == [("chat", 0, Outcome.TRUNCATED), ("small", 2, Outcome.OK)]
