"""From a request and its route to an open answer: choose a replica, say the request in its words, wait for the commit
point. A kept connection that turned out stale is replaced once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from proxy.errors import StaleConnection, UpstreamError
from proxy.protocols import endpoints
from proxy.protocols.protocol import Watcher
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.replica import Replica
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import Phase, RequestRecord
from proxy.telemetry.usage import usage_unanswered
from proxy.upstream.connection import AnswerHead
from proxy.upstream.exchange import Exchange, Opening
from proxy.upstream.pool import Pool
from proxy.wire.headers import Header, request_head, towards_upstream

REQUEST_ID = "x-request-id"
MOST_HEADS = 16
"""So many heads are kept for a client that sends the same headers again and again."""
JSON_BODY: Header = ("Content-Type", "application/json")

logger = logging.getLogger("penstock")


class Dispatch:
    """Opens exchanges. `on_malformed(route)` is told of each event that was dropped."""

    def __init__(self, pool: Pool, *, max_event_bytes: int, on_malformed: Callable[[Route], None]) -> None:
        self._pool = pool
        self._max_event_bytes = max_event_bytes
        self.on_malformed = on_malformed
        self._now = asyncio.get_running_loop().time  # one object for all exchanges

    async def open(
        self, request: ProxyRequest, route: Route, stream: Stream, watcher: Watcher, record: RequestRecord
    ) -> Opening:
        """The answer at its commit point; what follows flows into `stream`.

        Raises `UpstreamError`, or what the stream was interrupted with. Cancelling closes the connection.
        """
        replica = route.balancer.pick(route.replicas)
        asks_for_usage = replica.takes_stream_options and endpoints.for_path(request.path).asks_for_usage(request.body)
        message = upstream_message(request, route, replica, asks_for_usage=asks_for_usage)
        opening = await self._try(message, request, route, replica, stream, watcher, record)
        if asks_for_usage and _refuses_stream_options(opening):
            record.end_attempt(Outcome.STATUS)
            message = upstream_message(request, route, replica, asks_for_usage=False)
            opening = await self._try(message, request, route, replica, stream, watcher, record)
            if opening.status < 400:
                replica.takes_stream_options = False
                logger.info('route "%s": replica %d takes no `stream_options`', route.name, replica.index)
        return opening

    async def _try(
        self,
        message: bytes,
        request: ProxyRequest,
        route: Route,
        replica: Replica,
        stream: Stream,
        watcher: Watcher,
        record: RequestRecord,
    ) -> Opening:
        for fresh in (False, True):
            record.begin_attempt(route.name, replica.index)
            try:
                return await self._attempt(message, request, route, replica, stream, watcher, record, fresh=fresh)
            except UpstreamError as error:
                record.end_attempt(outcome_of(error, connected=record.phase is not Phase.CONNECT))
                if isinstance(error, StaleConnection) and not fresh:
                    continue
                raise error.about(f'route "{route.name}": replica {replica.index}') from error
        raise AssertionError("a fresh connection is never tried twice")

    async def _attempt(
        self,
        message: bytes,
        request: ProxyRequest,
        route: Route,
        replica: Replica,
        stream: Stream,
        watcher: Watcher,
        record: RequestRecord,
        *,
        fresh: bool,
    ) -> Opening:
        connection = await self._pool.connection(
            replica.origin, connect_timeout_s=route.timeouts.connect_s, fresh=fresh
        )
        replica.in_flight += 1
        exchange = _NotedExchange(
            stream=stream,
            watcher=watcher,
            streaming=request.body.stream,
            max_event_bytes=self._max_event_bytes,
            timeouts=route.timeouts,
            credentials=replica.headers,
            on_closed=lambda: _leave(replica),
            on_malformed=lambda: self.on_malformed(route),
            now=self._now,
        )
        exchange.note_in(record, Phase.FIRST_EVENT if request.body.stream else Phase.RESPONSE)
        try:
            exchange.begin(connection, message)
            return await exchange.opened
        except BaseException as error:
            exchange.close()
            if isinstance(error, asyncio.CancelledError):  # the client left; the replica has its prompt
                protocol = endpoints.for_path(request.path)
                record.tokens_in, record.tokens_out, record.tokens_estimated = usage_unanswered(protocol, request.body)
            raise


class _NotedExchange(Exchange):
    """An exchange whose way to the answer's head is noted in its request's record."""

    __slots__ = ("_next_phase", "_record")

    def note_in(self, record: RequestRecord, next_phase: Phase) -> None:
        """It is connected; `next_phase` is what follows the head."""
        record.phase = Phase.HEADERS
        self._record = record
        self._next_phase = next_phase

    def head_received(self, head: AnswerHead) -> None:
        self._record.phase = self._next_phase
        super().head_received(head)


def upstream_message(request: ProxyRequest, route: Route, replica: Replica, *, asks_for_usage: bool) -> bytes:
    """The request as this replica gets it: its own name of the model, its own credentials, nothing it need not know."""
    body = _upstream_body(request.body, route, asks_for_usage=asks_for_usage)
    head, names_request = _head(request, route, replica)
    name = b"" if names_request else b"x-request-id: %b\r\n" % request.request_id.encode()
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (head, name, len(body), body)


def _head(request: ProxyRequest, route: Route, replica: Replica) -> tuple[bytes, bool]:
    """The lines that stay the same as long as the client's do, without the empty one; whether one of them is the
    replica's own x-request-id."""
    target = replica.target(request.path, request.query)
    kept = request.crossing.get((replica, target))
    if kept is None:
        crossing = _crossing(request, route, replica)
        head = request_head("POST", target, crossing).removesuffix(b"\r\n")
        kept = head, any(name.lower() == REQUEST_ID for name, _ in crossing)
        if len(request.crossing) < MOST_HEADS:
            request.crossing[replica, target] = kept
    return kept


def _upstream_body(body: RequestBody, route: Route, *, asks_for_usage: bool) -> bytes:
    changes: dict[str, object] = {}
    if route.upstream_model != body.model:
        changes["model"] = route.upstream_model
    if asks_for_usage:
        changes["stream_options"] = body.object_with("stream_options", {"include_usage": True})
    return body.replaced(changes) if changes else body.raw


def _refuses_stream_options(opening: Opening) -> bool:
    """Whether what we put into the request may be what is wrong with it. Its name may also stand in a refusal that
    repeats the whole body: trying without it tells."""
    return opening.status in (400, 422) and opening.body is not None and b"stream_options" in opening.body


def _crossing(request: ProxyRequest, route: Route, replica: Replica) -> list[Header]:
    own = {name.lower() for name, _ in replica.headers}
    passed = [*towards_upstream(request.headers, keep_credentials=route.passthrough), *request.forwarded]
    if not _says_json(passed):
        passed = [*(header for header in passed if header[0].lower() != "content-type"), JSON_BODY]
    return [
        ("Host", replica.origin.authority),
        *(header for header in passed if header[0].lower() not in own),
        *(header for header in replica.headers if header[0].lower() != "accept-encoding"),
        ("Accept-Encoding", "identity"),
    ]


def _says_json(headers: Sequence[Header]) -> bool:
    """A WebSocket's upgrade has no content type, and curl sends a form's; the body is known to be JSON by now."""
    return any(name.lower() == "content-type" and "json" in value.lower() for name, value in headers)


def _leave(replica: Replica) -> None:
    replica.in_flight -= 1
