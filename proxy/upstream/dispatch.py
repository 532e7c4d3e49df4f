"""From a request and its route to an open answer: choose a replica, say the request in its words, wait for the commit
point. A kept connection that turned out stale is replaced once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.errors import StaleConnection, UpstreamError
from proxy.protocols.protocol import Watcher
from proxy.request import ProxyRequest
from proxy.routing.replica import Replica
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import RequestRecord
from proxy.upstream.exchange import Exchange, Opening
from proxy.upstream.pool import Pool
from proxy.wire.headers import Header, request_head, towards_upstream

REQUEST_ID = "x-request-id"
THIS_REQUEST: Header = (REQUEST_ID, "")
"""Stands where each request's own id goes."""
JSON_BODY: Header = ("Content-Type", "application/json")


class Dispatch:
    """Opens exchanges. `on_malformed(route)` is told of each event that was dropped."""

    def __init__(self, pool: Pool, *, max_event_bytes: int, on_malformed: Callable[[Route], None]) -> None:
        self._pool = pool
        self._max_event_bytes = max_event_bytes
        self._on_malformed = on_malformed

    async def open(
        self, request: ProxyRequest, route: Route, stream: Stream, watcher: Watcher, record: RequestRecord
    ) -> Opening:
        """The answer at its commit point; what follows flows into `stream`.

        Raises `UpstreamError`, or what the stream was interrupted with. Cancelling closes the connection.
        """
        replica = route.balancer.pick(route.replicas)
        message = upstream_message(request, route, replica)
        record.replica = replica.index
        for fresh in (False, True):
            record.attempts += 1
            try:
                return await self._attempt(message, request, route, replica, stream, watcher, fresh=fresh)
            except UpstreamError as error:
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
        *,
        fresh: bool,
    ) -> Opening:
        connection = await self._pool.connection(
            replica.origin, connect_timeout_s=route.timeouts.connect_s, fresh=fresh
        )
        replica.in_flight += 1
        exchange = Exchange(
            stream=stream,
            watcher=watcher,
            streaming=request.body.stream,
            max_event_bytes=self._max_event_bytes,
            timeouts=route.timeouts,
            credentials=replica.headers,
            on_closed=lambda: _leave(replica),
            on_malformed=lambda: self._on_malformed(route),
        )
        try:
            exchange.begin(connection, message)
            return await exchange.opened
        except BaseException:
            exchange.close()
            raise


def upstream_message(request: ProxyRequest, route: Route, replica: Replica) -> bytes:
    """The request as this replica gets it: its own name of the model, its own credentials, nothing it need not know."""
    body = request.body.raw
    if route.upstream_model != request.body.model:
        body = request.body.replaced({"model": route.upstream_model})
    crossing = request.crossing.get(replica)
    if crossing is None:
        crossing = request.crossing[replica] = _crossing(request, route, replica)
    headers = [(REQUEST_ID, request.request_id) if header is THIS_REQUEST else header for header in crossing]
    headers.append(("Content-Length", str(len(body))))
    return request_head("POST", replica.target(request.path, request.query), headers) + body


def _crossing(request: ProxyRequest, route: Route, replica: Replica) -> list[Header]:
    """The headers that stay the same as long as the client's do."""
    own = {name.lower() for name, _ in replica.headers}
    passed = [
        *towards_upstream(request.headers, keep_credentials=route.passthrough),
        *request.forwarded,
        THIS_REQUEST,
    ]
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
