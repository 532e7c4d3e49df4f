"""What a finished request adds to the figures, seen as Prometheus reads them."""

from __future__ import annotations

import pytest

from proxy.telemetry.attempt import Outcome
from proxy.telemetry.exposition import exposition
from proxy.telemetry.families import FAMILIES
from proxy.telemetry.record import EndState, Phase, RequestRecord
from proxy.telemetry.request_metrics import ENDPOINTS, Metrics
from tests.support.prometheus import Page, read

CHAT = "/v1/chat/completions"


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("1.2.3")
    made.know({"chat": 2, "embed": 1})
    return made


def page(metrics: Metrics) -> Page:
    return read(exposition(FAMILIES, metrics.figures()))


def request(path: str = CHAT, route: str = "chat") -> RequestRecord:
    """A request that came at 100 s."""
    return RequestRecord("req_1", "POST", path, started=100.0, transport="sse", route=route)


def finished(end_state: EndState = EndState.COMPLETED, record: RequestRecord | None = None) -> RequestRecord:
    """The same at its end, at 104 s."""
    record = record or request()
    record.finish(end_state, 104.0)
    return record


def streamed(events: int = 101, reads: int | None = None) -> RequestRecord:
    """A stream that first spoke at 101 s, and last at 103 s."""
    record = request()
    record.begin_attempt("chat", 0)
    record.mark_first_token(101.0)
    record.mark_last_event(103.0)
    record.events, record.reads = events, reads
    record.end_attempt(Outcome.OK)
    return finished(record=record)


# ---- requests ----


@pytest.mark.parametrize("end_state", EndState)
def test_each_end_counts_once(end_state: EndState, metrics: Metrics) -> None:
    metrics.add(finished(end_state))
    said = page(metrics)
    labels = {"route": "chat", "endpoint": CHAT, "transport": "sse", "outcome": str(end_state)}
    assert said.get("penstock_requests_total", **labels) == 1
    assert said.total("penstock_requests_total") == 1
    assert said.get("penstock_request_duration_seconds_count", **labels) == 1
    assert said.get("penstock_request_duration_seconds_sum", **labels) == 4.0


def test_ends_that_are_alike_count_together(metrics: Metrics) -> None:
    for end_state in (EndState.COMPLETED, EndState.COMPLETED, EndState.SHED):
        metrics.add(finished(end_state))
    said = page(metrics)
    assert said.total("penstock_requests_total", outcome="completed") == 2
    assert said.total("penstock_requests_total", outcome="shed") == 1
    assert said.total("penstock_request_duration_seconds_bucket", outcome="completed", le="2.5") == 0
    assert said.total("penstock_request_duration_seconds_bucket", outcome="completed", le="5") == 2


def test_a_request_that_is_not_at_its_end_does_not_count(metrics: Metrics) -> None:
    metrics.add(request())
    assert page(metrics).total("penstock_requests_total") == 0


def test_a_session_is_no_request(metrics: Metrics) -> None:
    record = request("/v1/ws")
    record.is_session = True
    metrics.add(finished(EndState.CLIENT_CLOSED, record))
    said = page(metrics)
    assert said.total("penstock_requests_total") == said.total("penstock_client_disconnects_total") == 0


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_a_served_path_stands_as_it_is(path: str, metrics: Metrics) -> None:
    metrics.add(finished(record=request(path)))
    assert page(metrics).total("penstock_requests_total", endpoint=path) == 1


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/models/gpt", "/.env", "/v1/chat/completions/", "", '/"}\n'])
def test_any_other_path_is_other(path: str, metrics: Metrics) -> None:
    metrics.add(finished(record=request(path)))
    assert page(metrics).total("penstock_requests_total", endpoint="other") == 1


def test_a_route_nobody_configured_is_unknown(metrics: Metrics) -> None:
    metrics.add(finished(EndState.REJECTED, request(route="unknown")))
    metrics.add(finished(EndState.REJECTED, request(route="made up")))
    said = page(metrics)
    assert said.total("penstock_requests_total", route="unknown") == said.total("penstock_requests_total") == 2


# ---- time ----


def test_the_first_token_counts_from_the_requests_start(metrics: Metrics) -> None:
    metrics.add(streamed())
    said = page(metrics)
    assert said.get("penstock_time_to_first_token_seconds_sum", route="chat") == 1.0
    assert said.get("penstock_time_to_first_token_seconds_count", route="chat") == 1


def test_a_streams_mean_gap_counts_once_for_each_gap(metrics: Metrics) -> None:
    metrics.add(streamed(events=101))
    said = page(metrics)
    assert said.get("penstock_inter_token_seconds_count", route="chat") == 100
    assert said.get("penstock_inter_token_seconds_sum", route="chat") == pytest.approx(2.0)
    assert said.get("penstock_inter_token_seconds_bucket", route="chat", le="0.015") == 0
    assert said.get("penstock_inter_token_seconds_bucket", route="chat", le="0.02") == 100


@pytest.mark.parametrize("events", [0, 1])
def test_a_stream_of_one_event_has_no_gap(events: int, metrics: Metrics) -> None:
    metrics.add(streamed(events=events))
    assert page(metrics).total("penstock_inter_token_seconds_count") == 0


def test_an_answer_without_a_first_token_has_no_times_of_tokens(metrics: Metrics) -> None:
    metrics.add(finished())
    said = page(metrics)
    assert said.total("penstock_time_to_first_token_seconds_count") == 0
    assert said.total("penstock_inter_token_seconds_count") == 0


def test_a_wait_in_a_queue_counts_for_who_was_tried_and_who_gave_up(metrics: Metrics) -> None:
    metrics.add(streamed())
    gave_up = request()
    gave_up.add_queue_time(100.0, 102.0)
    metrics.add(finished(EndState.SHED, gave_up))
    metrics.add(finished(EndState.REJECTED))  # turned away before any queue
    said = page(metrics)
    assert said.get("penstock_queue_wait_seconds_count", route="chat") == 2
    assert said.get("penstock_queue_wait_seconds_sum", route="chat") == 2.0


# ---- tokens, attempts, disconnects ----


def test_tokens_count_by_kind_and_by_how_they_are_known(metrics: Metrics) -> None:
    for tokens_in, tokens_out, estimated in ((10, 200, False), (5, None, False), (3, 7, True)):
        record = request()
        record.tokens_in, record.tokens_out, record.tokens_estimated = tokens_in, tokens_out, estimated
        metrics.add(finished(record=record))
    metrics.add(finished())  # nobody knows
    said = page(metrics)
    assert said.get("penstock_tokens_total", route="chat", kind="input", estimated="false") == 15
    assert said.get("penstock_tokens_total", route="chat", kind="output", estimated="false") == 200
    assert said.get("penstock_tokens_total", route="chat", kind="input", estimated="true") == 3
    assert said.get("penstock_tokens_total", route="chat", kind="output", estimated="true") == 7


def test_each_attempt_counts_where_it_was_made(metrics: Metrics) -> None:
    record = request()
    for route, replica, outcome in (("chat", 0, Outcome.REFUSED), ("chat", 1, Outcome.RESET), ("embed", 0, Outcome.OK)):
        record.begin_attempt(route, replica)
        record.end_attempt(outcome)
    metrics.add(finished(record=record))
    said = page(metrics)
    assert said.get("penstock_upstream_attempts_total", route="chat", replica="0", outcome="refused") == 1
    assert said.get("penstock_upstream_attempts_total", route="chat", replica="1", outcome="reset") == 1
    assert said.get("penstock_upstream_attempts_total", route="embed", replica="0", outcome="ok") == 1
    assert said.total("penstock_upstream_attempts_total") == 3


@pytest.mark.parametrize("phase", Phase)
def test_a_client_that_leaves_counts_by_how_far_its_request_had_come(phase: Phase, metrics: Metrics) -> None:
    record = request()
    record.phase = phase
    metrics.add(finished(EndState.CLIENT_CLOSED, record))
    said = page(metrics)
    assert said.get("penstock_client_disconnects_total", route="chat", phase=str(phase)) == 1
    assert said.total("penstock_client_disconnects_total") == 1


def test_a_truncated_answer_counts(metrics: Metrics) -> None:
    assert page(metrics).get("penstock_streams_truncated_total", route="chat") == 0
    metrics.add(finished(EndState.UPSTREAM_TRUNCATED))
    assert page(metrics).get("penstock_streams_truncated_total", route="chat") == 1


def test_an_upstream_that_sends_in_bursts_is_told(metrics: Metrics) -> None:
    metrics.add(streamed(events=200, reads=200))
    assert page(metrics).get("penstock_bursting_upstream", route="chat") == 0
    for _ in range(2):
        metrics.add(streamed(events=200, reads=2))
    assert page(metrics).get("penstock_bursting_upstream", route="chat") == 1
    assert page(metrics).get("penstock_bursting_upstream", route="embed") == 0


def test_a_stream_whose_reads_nobody_counted_tells_nothing_of_bursts(metrics: Metrics) -> None:
    metrics.add(streamed(events=200, reads=None))
    assert page(metrics).get("penstock_bursting_upstream", route="chat") == 0


# ---- what is there from the start ----


def test_what_is_configured_stands_there_before_anything_happens(metrics: Metrics) -> None:
    said = page(metrics)
    for route in ("chat", "embed"):
        for name in ("streams_in_flight", "queue_depth", "streams_truncated_total", "malformed_events_total"):
            assert said.get(f"penstock_{name}", route=route) == 0
    assert said.total("penstock_replica_up") == 3
    assert said.get("penstock_replica_up", route="chat", replica="1") == 1
    assert said.get("penstock_breaker_state", route="chat", replica="1") == 0
    assert (said.get("penstock_config_reloads_total"), said.get("penstock_config_last_reload_success")) == (0, 1)
    assert said.get("penstock_build_info", version="1.2.3") == 1
    assert said.get("penstock_workers_reporting") == 1
    assert said.get("penstock_websocket_sessions", dialect="bare") == 0


def test_what_is_so_just_now_is_set(metrics: Metrics) -> None:
    metrics.show_in_flight({"chat": 3})
    metrics.show_sessions({"bare": 2})
    metrics.queue_depth.of("chat").value = 4
    metrics.event_loop_lag.value = 0.25
    said = page(metrics)
    assert said.get("penstock_streams_in_flight", route="chat") == 3
    assert said.get("penstock_streams_in_flight", route="embed") == 0
    assert said.get("penstock_websocket_sessions", dialect="bare") == 2
    assert said.get("penstock_queue_depth", route="chat") == 4
    assert said.get("penstock_event_loop_lag_seconds") == 0.25
    metrics.show_in_flight({})
    assert page(metrics).get("penstock_streams_in_flight", route="chat") == 0


def test_other_routes_bring_other_gauges_and_no_count_is_lost(metrics: Metrics) -> None:
    metrics.add(finished(record=request(route="embed")))
    metrics.know({"chat": 1, "new": 1})
    said = page(metrics)
    assert said.get("penstock_replica_up", route="embed", replica="0") is None
    assert said.get("penstock_replica_up", route="chat", replica="1") is None
    assert said.get("penstock_replica_up", route="new", replica="0") == 1
    assert said.total("penstock_requests_total", route="embed") == 1
    metrics.add(finished(record=request(route="embed")))  # it was under way
    assert page(metrics).total("penstock_requests_total", route="embed") == 2


def test_the_same_routes_again_lose_nothing(metrics: Metrics) -> None:
    metrics.add(finished())
    metrics.know({"chat": 2, "embed": 1})
    metrics.add(finished())
    assert page(metrics).total("penstock_requests_total", route="chat") == 2
