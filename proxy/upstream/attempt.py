"""One attempt: one exchange with one replica, from its connection to its commit point.

What comes of it is told at once to the replica's standing and to the request's record, also what comes of it later, in
the stream. Whether there is another attempt, dispatch decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from proxy.errors import GatewayError, UpstreamError
from proxy.protocols.account import Account
from proxy.protocols.protocol import StreamProtocol, Watcher
from proxy.request import ProxyRequest
from proxy.routing.failure_kind import FailureKind, kind_of_error, kind_of_failure, kind_of_status
from proxy.routing.replica import Replica
from proxy.routing.retry import Attempts
from proxy.routing.retry_after import retry_after_s
from proxy.routing.standing import Visit
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import Phase, RequestRecord
from proxy.telemetry.usage import usage_unanswered
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.exchange import Exchange, Opening
from proxy.upstream.hedge import Race
from proxy.upstream.message import upstream_message
from proxy.upstream.pool import Pool
from proxy.wire.sse import Event


@dataclass(frozen=True, slots=True)
class Asked:
    """What all attempts of a request at one route have in common.

    `told`: what the client has of the answer already, where that broke off. `race`: attempts may run beside each other.
    """

    request: ProxyRequest
    route: Route
    protocol: StreamProtocol
    stream: Stream
    record: RequestRecord
    attempts: Attempts
    told: Account | None = None
    race: Race | None = None

    def request_for(self, replica: Replica) -> ProxyRequest:
        """The request; at a replica that takes up an answer, in the words that make it do so."""
        if self.told is None:
            return self.request
        return replace(self.request, body=self.told.body_for(replica.continues))


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer of a replica at its commit point; `watcher` looks at what still comes of it.

    `kind`: what kind of failure it is (None: none); such an answer is whole. `wait_s`: how long its replica then asks
    to be left alone.
    """

    opening: Opening
    asked: Asked
    replica: Replica
    watcher: Watcher
    kind: FailureKind | None
    wait_s: float | None

    @property
    def route(self) -> Route:
        return self.asked.route


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer; `error` says so to the client, naming route and replica."""

    error: UpstreamError
    kind: FailureKind
    replica: Replica
    wait_s: None = None


Tried = Opened | Failed


class Attempting:
    """Makes attempts. `on_malformed(route)` is told of each event that was dropped."""

    def __init__(self, pool: Pool, max_event_bytes: int, on_malformed: Callable[[Route], None]) -> None:
        self._pool = pool
        self._max_event_bytes = max_event_bytes
        self._on_malformed = on_malformed
        self._now = asyncio.get_running_loop().time  # one object for all exchanges

    async def attempt(self, asked: Asked, replica: Replica, *, fresh: bool, asks_for_usage: bool) -> Tried:
        """The answer at its commit point; what follows flows into the stream. `fresh`: on a new connection.

        Raises what the stream was interrupted with. Cancelling closes the connection.
        """
        route, record = asked.route, asked.record
        request = asked.request_for(replica)
        message = upstream_message(request, route, replica, asks_for_usage=asks_for_usage)
        visit = Visit(replica.standing, self._now())  # before anything is awaited: a breaker may admit only one
        record.route = route.name
        record.begin_attempt(route.name, replica.index)
        watcher = asked.protocol.watcher(request.body)
        exchange: _NotedExchange | None = None
        try:
            connection = await self._pool.connection(
                replica.origin, connect_timeout_s=route.timeouts.connect_s, fresh=fresh
            )
            exchange = self._exchange(asked, replica, watcher, visit)
            exchange.begin(connection, message)
            opening = await exchange.opened
        except UpstreamError as error:
            return self._failed(asked, replica, visit, exchange, error)
        except BaseException as error:
            self._leave(asked, visit, exchange, cancelled=isinstance(error, asyncio.CancelledError))
            raise
        if opening.body is None:
            return Opened(opening, asked, replica, watcher, None, None)
        return self._judge(opening, asked, replica, watcher, visit)

    def _exchange(self, asked: Asked, replica: Replica, watcher: Watcher, visit: Visit) -> _NotedExchange:
        route = asked.route
        streaming = asked.request.body.stream
        exchange = _NotedExchange(
            stream=asked.stream,
            watcher=watcher,
            streaming=streaming,
            max_event_bytes=self._max_event_bytes,
            timeouts=route.timeouts,
            credentials=replica.headers,
            on_closed=visit.over,
            on_malformed=lambda: self._on_malformed(route),
            now=self._now,
        )
        exchange.note_in(asked.record, visit, Phase.FIRST_EVENT if streaming else Phase.RESPONSE, asked.race)
        return exchange

    def _judge(self, opening: Opening, asked: Asked, replica: Replica, watcher: Watcher, visit: Visit) -> Opened:
        """A whole answer says by itself how the attempt went; what flows will be seen."""
        kind = _kind_of(opening)
        if kind is None:
            visit.content(self._now())
            return Opened(opening, asked, replica, watcher, None, None)
        wait_s = _wait_s(opening)
        visit.failed(kind, self._now(), wait_s)
        outcome = Outcome.STATUS if opening.failure is None else Outcome.ERROR_EVENT
        asked.record.end_attempt(outcome, (asked.route.name, replica.index))
        return Opened(opening, asked, replica, watcher, kind, wait_s)

    def _failed(
        self, asked: Asked, replica: Replica, visit: Visit, exchange: Exchange | None, error: UpstreamError
    ) -> Failed:
        outcome = outcome_of(error, connected=exchange is not None)
        asked.record.end_attempt(outcome, (asked.route.name, replica.index))
        kind = kind_of_error(error) or FailureKind.INVALID
        visit.failed(kind, self._now())
        self._leave(asked, visit, exchange, cancelled=False)
        named = error.about(f'route "{asked.route.name}": replica {replica.index}')
        named.__cause__ = error
        return Failed(named, kind, replica)

    def _leave(self, asked: Asked, visit: Visit, exchange: Exchange | None, *, cancelled: bool) -> None:
        if exchange is not None:
            exchange.close()
            if cancelled:  # the client left; the replica has its prompt
                usage = usage_unanswered(asked.protocol, asked.request.body)
                asked.record.tokens_in, asked.record.tokens_out, asked.record.tokens_estimated = usage
        visit.left()
        visit.over()


class _NotedExchange(Exchange):
    """An exchange whose way is noted: up to the answer's head in its request's record, then in its replica's standing,
    as soon as something is known."""

    __slots__ = ("_next_phase", "_race", "_record", "_visit")

    def note_in(self, record: RequestRecord, visit: Visit, next_phase: Phase, race: Race | None) -> None:
        """It is connected; `next_phase` is what follows the head. `race`: it may be one of two."""
        record.phase = Phase.HEADERS
        self._record = record
        self._visit = visit
        self._next_phase = next_phase
        self._race = race

    def outrun(self) -> None:
        self._visit.outrun(self._now())
        self.close()

    def head_received(self, head: AnswerHead) -> None:
        self._record.phase = self._next_phase
        super().head_received(head)

    def close(self) -> None:
        super().close()
        self._visit.left()

    def _enter_stream(self) -> None:
        if self._race is None:
            super()._enter_stream()
        else:
            self._race.enter(self)

    def _open(self, opening: Opening) -> None:
        if self._race is not None and opening.status < 400 and not self.opened.done():
            self._race.won_by(self)
        super()._open(opening)

    def _speak(self) -> None:
        super()._speak()
        if self._watcher.failure is None:  # else its first word is that it failed
            self._visit.content(self._now())

    def _error_event(self, event: Event) -> Event:
        if self._watcher.failure is not None:
            self._visit.failed(kind_of_failure(self._watcher.failure), self._now())
        return super()._error_event(event)

    def _conclude(self, error: GatewayError | None) -> None:
        super()._conclude(error)
        broken = self._stream.error if self._committed else None  # before the commit point it is the attempt's
        kind = None if broken is None else kind_of_error(broken)
        if kind is not None:
            self._visit.failed(kind, self._now())
        elif broken is not None:
            self._visit.left()


def _kind_of(opening: Opening) -> FailureKind | None:
    """What kind of failure a whole answer is; None for one that is none."""
    if opening.failure is not None:
        return kind_of_failure(opening.failure)
    return kind_of_status(opening.status, opening.body or b"")


def _wait_s(opening: Opening) -> float | None:
    """How long the replica asks to be left alone."""
    said = next((value for name, value in opening.headers if name.lower() == "retry-after"), None)
    return retry_after_s(said, datetime.now(UTC))
