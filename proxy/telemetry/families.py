"""The metrics there are: names, labels and what each one means, as they stand in `/metrics` and in docs/operations.md.

Who counts what is `request_metrics`'. Labels are names of the configuration, or of a closed set of ours; never what a
client sent.
"""

from __future__ import annotations

from typing import Final

from proxy.telemetry.metrics import Family

_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKENS: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 120)
_GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_WAITS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS: Final = Family(
    "penstock_requests_total",
    "counter",
    "Requests that have ended, by how they ended.",
    ("route", "endpoint", "transport", "outcome"),
)
REQUEST_DURATION: Final = Family(
    "penstock_request_duration_seconds",
    "histogram",
    "From a request's first byte to the end of its answer.",
    ("route", "endpoint", "transport", "outcome"),
    _DURATIONS,
)
FIRST_TOKEN: Final = Family(
    "penstock_time_to_first_token_seconds",
    "histogram",
    "From a request's first byte to the first content of a streamed answer.",
    ("route",),
    _FIRST_TOKENS,
)
INTER_TOKEN: Final = Family(
    "penstock_inter_token_seconds",
    "histogram",
    "Between two events of an answer: the mean gap of each stream, observed at its end once for each of its gaps.",
    ("route",),
    _GAPS,
)
TOKENS: Final = Family(
    "penstock_tokens_total",
    "counter",
    "Tokens, as the model servers counted them, or (estimated) as they can be guessed where none did.",
    ("route", "kind", "estimated"),
)
STREAMS_IN_FLIGHT: Final = Family(
    "penstock_streams_in_flight", "gauge", "Answers that are awaited or on their way, streamed or not.", ("route",)
)
QUEUE_DEPTH: Final = Family("penstock_queue_depth", "gauge", "Requests that wait in the route's queue.", ("route",))
QUEUE_WAIT: Final = Family(
    "penstock_queue_wait_seconds",
    "histogram",
    "How long requests waited in queues before they were admitted or gave up.",
    ("route",),
    _WAITS,
)
UPSTREAM_ATTEMPTS: Final = Family(
    "penstock_upstream_attempts_total",
    "counter",
    "Attempts at a replica, by what came of them; those that the client left unanswered are not counted.",
    ("route", "replica", "outcome"),
)
REPLICA_UP: Final = Family(
    "penstock_replica_up", "gauge", "1: the replica gets requests; 0: it is out.", ("route", "replica"), together="max"
)
BREAKER_STATE: Final = Family(
    "penstock_breaker_state",
    "gauge",
    "The replica's circuit breaker: 0 closed, 1 half-open, 2 open.",
    ("route", "replica"),
    together="max",
)
CLIENT_DISCONNECTS: Final = Family(
    "penstock_client_disconnects_total",
    "counter",
    "Requests whose client left, or cancelled, before the answer's end, by how far they had come.",
    ("route", "phase"),
)
STREAMS_TRUNCATED: Final = Family(
    "penstock_streams_truncated_total", "counter", "Answers that stopped before their protocol's own end.", ("route",)
)
MALFORMED_EVENTS: Final = Family(
    "penstock_malformed_events_total", "counter", "Events that could not be JSON objects, and were dropped.", ("route",)
)
BURSTING_UPSTREAM: Final = Family(
    "penstock_bursting_upstream",
    "gauge",
    "1: the route's latest streams came in bursts, as when something between here and the model buffers.",
    ("route",),
    together="max",
)
WEBSOCKET_SESSIONS: Final = Family("penstock_websocket_sessions", "gauge", "Open WebSocket sessions.", ("dialect",))
CONFIG_RELOADS: Final = Family(
    "penstock_config_reloads_total", "counter", "Times the configuration was read again, well or not."
)
CONFIG_LAST_RELOAD: Final = Family(
    "penstock_config_last_reload_success",
    "gauge",
    "1: the configuration in use is the one last read; 0: that one was refused.",
    together="min",
)
EVENT_LOOP_LAG: Final = Family(
    "penstock_event_loop_lag_seconds",
    "gauge",
    "How late the event loop was at worst within the last 15 seconds.",
    together="max",
)
WORKERS_REPORTING: Final = Family(
    "penstock_workers_reporting",
    "gauge",
    "Processes whose figures are in these; of the others there is only what they had counted when they last reported.",
)
BUILD_INFO: Final = Family(
    "penstock_build_info", "gauge", "Always 1; the label is the version.", ("version",), together="max"
)

FAMILIES: Final = (
    REQUESTS,
    REQUEST_DURATION,
    FIRST_TOKEN,
    INTER_TOKEN,
    TOKENS,
    STREAMS_IN_FLIGHT,
    QUEUE_DEPTH,
    QUEUE_WAIT,
    UPSTREAM_ATTEMPTS,
    REPLICA_UP,
    BREAKER_STATE,
    CLIENT_DISCONNECTS,
    STREAMS_TRUNCATED,
    MALFORMED_EVENTS,
    BURSTING_UPSTREAM,
    WEBSOCKET_SESSIONS,
    CONFIG_RELOADS,
    CONFIG_LAST_RELOAD,
    EVENT_LOOP_LAG,
    WORKERS_REPORTING,
    BUILD_INFO,
)
