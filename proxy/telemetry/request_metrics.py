"""What the gateway measures: what each finished request adds, and the slots for what others know.

A request costs a few microseconds here, once, at its end; nothing is counted for an event. Names and labels are
`families`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from proxy.telemetry import families
from proxy.telemetry.bursts import Bursts
from proxy.telemetry.metrics import Family, Figures, Histogram, Instrument, Value, histograms, values
from proxy.telemetry.record import UNKNOWN, Dialect, EndState, RequestRecord

ENDPOINTS: Final = frozenset(
    {
        "/",
        "/client.js",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/models",
        "/v1/realtime",
        "/v1/ws",
        "/v1/ws/tickets",
        "/api/chat",
        "/api/generate",
        "/api/tags",
        "/api/version",
        "/stream/v1/chat",
        "/stream/v1/toolchain",
        "/completion/v1/chat",
        "/completion/v1/toolchain",
    }
)
"""Paths that stand in metrics as they are; what a client makes up counts as `OTHER`."""
OTHER: Final = "other"
DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)


class Metrics:
    """All of one process. What is a number of this moment is set by whoever knows it: `queue_depth.of("chat").value`.

    The owner's duty: `know` the routes before their requests end; `add` each record once, when it is finished.
    """

    def __init__(self, version: str) -> None:
        self._instruments: list[Instrument[Value] | Instrument[Histogram]] = []
        self.requests = self._values(families.REQUESTS)
        self.request_duration = self._histograms(families.REQUEST_DURATION)
        self.first_token = self._histograms(families.FIRST_TOKEN)
        self.inter_token = self._histograms(families.INTER_TOKEN)
        self.tokens = self._values(families.TOKENS)
        self.streams_in_flight = self._values(families.STREAMS_IN_FLIGHT)
        self.queue_depth = self._values(families.QUEUE_DEPTH)
        self.queue_wait = self._histograms(families.QUEUE_WAIT)
        self.upstream_attempts = self._values(families.UPSTREAM_ATTEMPTS)
        self.replica_up = self._values(families.REPLICA_UP)
        self.breaker_state = self._values(families.BREAKER_STATE)
        self.client_disconnects = self._values(families.CLIENT_DISCONNECTS)
        self.streams_truncated = self._values(families.STREAMS_TRUNCATED)
        self.malformed_events = self._values(families.MALFORMED_EVENTS)
        self.bursting_upstream = self._values(families.BURSTING_UPSTREAM)
        self.websocket_sessions = self._values(families.WEBSOCKET_SESSIONS)
        self.config_reloads = self._values(families.CONFIG_RELOADS).of()
        self.config_last_reload_success = self._values(families.CONFIG_LAST_RELOAD).of()
        self.event_loop_lag = self._values(families.EVENT_LOOP_LAG).of()
        self._values(families.WORKERS_REPORTING).of().value = 1
        self._values(families.BUILD_INFO).of(version).value = 1
        self.config_last_reload_success.value = 1
        self.show_sessions({})
        self._unknown = _OfRoute(self, UNKNOWN)
        self._routes: dict[str, _OfRoute] = {}

    def know(self, routes: Mapping[str, int]) -> None:
        """These are the routes now, and how many replicas each one has. What was counted of others stays.

        A replica is taken for up, and its breaker for closed, until somebody says otherwise.
        """
        for gauge in (self.queue_depth, self.replica_up, self.breaker_state):
            gauge.forget()
        for route, replicas in routes.items():
            self._routes.setdefault(route, _OfRoute(self, route))
            for counted in (self.streams_truncated, self.malformed_events, self.bursting_upstream, self.queue_depth):
                counted.of(route)
            for replica in range(replicas):
                self.replica_up.of(route, str(replica)).value = 1
                self.breaker_state.of(route, str(replica))
        self.show_in_flight({})

    def show_in_flight(self, streams: Mapping[str, int]) -> None:
        """So many answers are under way, by route."""
        self.streams_in_flight.forget()
        for route in (*self._routes, *streams):
            self.streams_in_flight.of(route).value = streams.get(route, 0)

    def show_sessions(self, sessions: Mapping[Dialect, int]) -> None:
        """So many WebSocket sessions are open, by dialect."""
        for dialect in DIALECTS:
            self.websocket_sessions.of(dialect).value = sessions.get(dialect, 0)

    def add(self, record: RequestRecord) -> None:
        """A request has ended."""
        if record.is_session or record.end_state is None:
            return
        of_route = self._routes.get(record.route, self._unknown)
        of_route.finish(record, record.end_state)
        for route, replica, outcome in record.attempted:
            self.upstream_attempts.of(route, str(replica), str(outcome)).value += 1

    def figures(self) -> Figures:
        """Everything as it is now."""
        return {instrument.family.name: instrument.figures() for instrument in self._instruments}

    def _values(self, family: Family) -> Instrument[Value]:
        instrument = values(family)
        self._instruments.append(instrument)
        return instrument

    def _histograms(self, family: Family) -> Instrument[Histogram]:
        instrument = histograms(family)
        self._instruments.append(instrument)
        return instrument


class _OfRoute:
    """One route's metrics, looked up once."""

    __slots__ = (
        "_bursts",
        "_ends",
        "_first_token",
        "_inter_token",
        "_metrics",
        "_queue_wait",
        "_route",
        "_tokens",
    )

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics = metrics
        self._route = route
        self._ends: dict[tuple[str, str, str], tuple[Value, Histogram]] = {}
        self._tokens: dict[bool, tuple[Value, Value]] = {}
        self._first_token = metrics.first_token.of(route)
        self._inter_token = metrics.inter_token.of(route)
        self._queue_wait = metrics.queue_wait.of(route)
        self._bursts = Bursts()

    def finish(self, record: RequestRecord, end_state: EndState) -> None:
        self._count_end(record, end_state)
        if record.attempts or record.queue_ms:
            self._queue_wait.observe(record.queue_ms / 1000)
        if record.ttft_ms is not None:
            self._first_token.observe(record.ttft_ms / 1000)
            if record.last_event_ms is not None and record.events > 1:
                self._observe_pace(record.events, record.ttft_ms, record.last_event_ms, record.reads)
        if record.tokens_in is not None or record.tokens_out is not None:
            self._count_tokens(record.tokens_in or 0, record.tokens_out or 0, record.tokens_estimated)

    def _count_end(self, record: RequestRecord, end_state: EndState) -> None:
        endpoint = record.path if record.path in ENDPOINTS else OTHER
        labels = (endpoint, record.transport, str(end_state))  # the plain text: an enum's member has another hash
        known = self._ends.get(labels)
        if known is None:
            metrics = self._metrics
            known = metrics.requests.of(self._route, *labels), metrics.request_duration.of(self._route, *labels)
            self._ends[labels] = known
        count, duration = known
        count.value += 1
        duration.observe((record.duration_ms or 0.0) / 1000)
        if end_state is EndState.CLIENT_CLOSED:
            self._metrics.client_disconnects.of(self._route, str(record.phase)).value += 1
        elif end_state is EndState.UPSTREAM_TRUNCATED:
            self._metrics.streams_truncated.of(self._route).value += 1

    def _observe_pace(self, events: int, first_ms: float, last_ms: float, reads: int | None) -> None:
        gaps = events - 1
        self._inter_token.observe(max(0.0, last_ms - first_ms) / 1000 / gaps, gaps)
        if reads is not None:
            bursting = self._bursts.add(events, reads, last_ms / 1000)
            self._metrics.bursting_upstream.of(self._route).value = int(bursting)

    def _count_tokens(self, tokens_in: int, tokens_out: int, estimated: bool) -> None:
        known = self._tokens.get(estimated)
        if known is None:
            tokens, said = self._metrics.tokens, "true" if estimated else "false"
            known = tokens.of(self._route, "input", said), tokens.of(self._route, "output", said)
            self._tokens[estimated] = known
        counted_in, counted_out = known
        counted_in.value += tokens_in
        counted_out.value += tokens_out
