"""What is known about one request: filled along its way, finished once, then read by the log and the metrics.

Times are passed in (`now`, seconds of one monotonic clock). Writing it out belongs to `access_log` and the recorder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from proxy.errors import ClientError, FirstTokenTimeout, GatewayError, UpstreamError, UpstreamIdle, UpstreamTruncated
from proxy.telemetry.attempt import Attempt, Outcome

Transport = Literal["http", "sse", "ws"]
Dialect = Literal["bare", "mux", "responses", "realtime"]

UNKNOWN: Final = "unknown"  # the route and the model of a request that names none of ours: labels are configured names
CLIENT_LEFT: Final = 499  # never sent: there is nobody to send it to


class EndState(StrEnum):
    """How a request ended: the log's `end_state` and the metrics' `outcome` (http.md, "Metrics and log")."""

    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    REJECTED = "rejected"  # a 4xx of ours
    UPSTREAM_REJECTED = "upstream_rejected"  # a 4xx passed on
    SHED = "shed"  # a 429 or 503 of ours
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_IDLE = "upstream_idle"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    DRAINED = "drained"  # cut off when the drain's time was over
    ERROR = "error"  # ours


class Phase(StrEnum):
    """How far a request has come: the metrics' `phase` of a client that leaves then."""

    BODY = "body"  # its body is read
    QUEUE = "queue"  # it waits to be admitted
    CONNECT = "connect"  # a replica is connected to
    HEADERS = "headers"  # the replica has the request, and has not answered
    FIRST_EVENT = "first_event"  # the answer's head came; nothing has gone downstream
    STREAM = "stream"  # events go downstream
    RESPONSE = "response"  # an answer that is no event stream is received or given


_END_STATES: Final = (
    (UpstreamTruncated, EndState.UPSTREAM_TRUNCATED),
    (UpstreamIdle, EndState.UPSTREAM_IDLE),
    (FirstTokenTimeout, EndState.FIRST_TOKEN_TIMEOUT),
    (UpstreamError, EndState.UPSTREAM_ERROR),
    (ClientError, EndState.REJECTED),
)


def end_state_of(cause: BaseException | int) -> EndState:
    """The end a request comes to by an error of ours, or by an upstream's status that was passed on.

    A client that left (`CLIENT_CLOSED`) and a stream cut by a drain (`DRAINED`) are neither: who ends them says so.
    """
    if isinstance(cause, int):
        return _end_state_of_status(cause)
    if isinstance(cause, GatewayError) and cause.status in (429, 503):
        return EndState.SHED
    return next((state for kind, state in _END_STATES if isinstance(cause, kind)), EndState.ERROR)


def _end_state_of_status(status: int) -> EndState:
    if status < 400:
        return EndState.COMPLETED
    return EndState.UPSTREAM_REJECTED if status < 500 else EndState.UPSTREAM_ERROR


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request, from its first byte to its end.

    `path` is without the query (a query may carry a ticket); `key` is the key's name; `replica` its index in the route.
    `route` and `model` are configured names or `unknown`. `started` and every `now` are seconds of the same clock.
    `is_session`: it tells of a whole WebSocket connection, whose requests have records of their own. `reads`: by how
    many reads of the upstream's socket the `events` came, where that is known. `rounds` and `tool_calls` are a tool
    loop's (0: none ran); what is counted is then the sum of its rounds. `goes_on`: its handler is done, but it is not:
    it is a session's, or its client has gone. Whoever holds it then settles and publishes it. `continued`: how often
    the answer broke off and went on at another replica.
    """

    request_id: str
    method: str
    path: str
    started: float
    transport: Transport = "http"
    dialect: Dialect | None = None
    trace_id: str | None = None
    key: str | None = None
    route: str = UNKNOWN
    model: str = UNKNOWN
    replica: int | None = None
    attempts: int = 0
    status: int | None = None
    end_state: EndState | None = None
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    duration_ms: float | None = None
    events: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_estimated: bool = False
    is_session: bool = False
    phase: Phase = Phase.BODY
    reads: int | None = None
    last_event_ms: float | None = None
    rounds: int = 0
    tool_calls: int = 0
    goes_on: bool = False
    continued: int = 0
    attempted: list[Attempt] = field(default_factory=list)
    """What came of the attempts, in order. One that its client left unanswered came to nothing."""
    _attempt_under_way: tuple[str, int] | None = None

    def begin_attempt(self, route: str, replica: int) -> None:
        """The request goes to this replica of this route."""
        self.attempts += 1
        self.replica = replica
        self.phase = Phase.CONNECT
        self._attempt_under_way = (route, replica)

    def end_attempt(self, outcome: Outcome, of: tuple[str, int] | None = None) -> None:
        """What came of the attempt under way; or of another beside it, `of` this route and replica. Once only: later
        calls change nothing."""
        if of is not None and of != self._attempt_under_way:
            self.attempted.append(Attempt(*of, outcome))
        elif self._attempt_under_way is not None:
            self.attempted.append(Attempt(*self._attempt_under_way, outcome))
            self._attempt_under_way = None

    def attempt_goes_on(self, route: str, replica: int) -> None:
        """Of two attempts under way, it is this one that answers."""
        self.replica = replica
        self._attempt_under_way = (route, replica)

    def add_attempts(self, other: RequestRecord) -> None:
        """More attempts of this request, which `other` has."""
        self.attempts += other.attempts
        self.attempted += other.attempted
        if other.replica is not None:
            self.route, self.replica = other.route, other.replica

    def add_queue_time(self, entered: float, now: float) -> None:
        """Waited in a queue from `entered` to `now`; several waits (another replica's queue) add up."""
        self.queue_ms = round(self.queue_ms + (now - entered) * 1000, 1)

    def mark_first_token(self, now: float) -> None:
        """The first content went downstream. Only the first call counts."""
        if self.ttft_ms is None:
            self.ttft_ms = round((now - self.started) * 1000, 1)

    def mark_last_event(self, now: float) -> None:
        """The last event of the answer came."""
        self.last_event_ms = round((now - self.started) * 1000, 1)

    def add_round(self, other: RequestRecord) -> None:
        """One more exchange of this request, whose figures `other` has. With tools run between its events, nothing can
        be said of their pace any more."""
        self.attempts += other.attempts
        self.attempted += other.attempted
        if other.replica is not None:
            self.replica = other.replica
        self.continued += other.continued
        self.queue_ms = round(self.queue_ms + other.queue_ms, 1)
        self.events += other.events
        if other.tokens_in is not None or other.tokens_out is not None:
            self.tokens_in = (self.tokens_in or 0) + (other.tokens_in or 0)
            self.tokens_out = (self.tokens_out or 0) + (other.tokens_out or 0)
            self.tokens_estimated = self.tokens_estimated or other.tokens_estimated
        self.reads = self.last_event_ms = None

    def finish(self, end_state: EndState, now: float) -> bool:
        """Settle how it ended. True the first time: the caller then publishes the record. Later ends change nothing."""
        if self.end_state is not None:
            return False
        self.end_state = end_state
        self.duration_ms = round((now - self.started) * 1000, 1)
        if end_state is EndState.CLIENT_CLOSED:
            self.status = CLIENT_LEFT
        return True
