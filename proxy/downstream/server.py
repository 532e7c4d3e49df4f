"""The server at a port: makes a protocol for each accepted socket, and passes connections from the quick one to
aiohttp's and back."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from proxy.downstream.client_socket import KEEPALIVE_S, LINGER_S
from proxy.downstream.connection import ClientConnection
from proxy.downstream.known_heads import KnownHeads
from proxy.downstream.quick_connection import QuickConnection

MAX_LINE_BYTES = 8190
MAX_FIELD_BYTES = 16 * 1024
MAX_HEADERS = 100
LAST_WORDS_S = 0.2
"""How long a handler may go on when the gateway stops; who wanted to let it finish has drained before."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Lane = Callable[[web.BaseRequest], Awaitable[web.StreamResponse] | None]


class ClientServer(web.Server):
    """Makes a protocol for each accepted socket. Unlike aiohttp's, it fails on a setting it does not know.

    `heads`: where requests with known heads are answered without a parser (None: nowhere).
    """

    def __init__(
        self, handler: Handler, head_timeout_s: float | None, heads: KnownHeads | None = None, **rest: Any
    ) -> None:
        super().__init__(handler, handler_cancellation=True, **rest)
        self._head_timeout_s = head_timeout_s
        self._heads = heads
        self._client_loop = asyncio.get_running_loop()
        self._now = self._client_loop.time

    def __call__(self) -> RequestHandler:
        if self._heads is None:
            return self._parsing()
        quick = QuickConnection(self, self._heads, take_over=self.take_over, now=self._now, loop=self._client_loop)
        return cast("RequestHandler", quick)

    def take_over(self, transport: asyncio.Transport, data: bytes, *, paused: bool, known: bool) -> None:
        """Go on with the connection by the other protocol, which reads `data` first: the quick one, where its head is
        `known`. `paused`: the client is behind in reading."""
        protocol = self() if known else self._parsing()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if paused:
            protocol.pause_writing()
        protocol.data_received(data)

    def awaits_request(self) -> bool:
        """Whether somebody is connected whose first request has not come, or not all of its body."""
        return any(cast("ClientConnection | QuickConnection", each).awaits_request for each in self.connections)

    def _parsing(self) -> ClientConnection:
        return ClientConnection(
            self,
            head_timeout_s=self._head_timeout_s,
            heads=self._heads,
            now=self._now,
            take_over=self.take_over,
            loop=self._client_loop,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            lingering_time=LINGER_S,
        )


class ClientRunner(web.AppRunner):
    """Runs an application on `ClientServer`. A request's head may take `head_timeout_s` seconds (None: for ever).

    `lane` may take a request before the application sees it: it gives None, or what will be the answer. `heads`: where
    those that come again are kept.
    """

    def __init__(
        self,
        app: web.Application,
        head_timeout_s: float | None,
        lane: Lane | None = None,
        heads: KnownHeads | None = None,
    ) -> None:
        super().__init__(app, shutdown_timeout=LAST_WORDS_S)
        self._head_timeout_s = head_timeout_s
        self._lane = lane
        self._heads = heads

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return ClientServer(
            _refusing_expectations(made.request_handler, self._lane),
            self._head_timeout_s,
            self._heads,
            request_factory=made.request_factory,
            loop=asyncio.get_running_loop(),
        )


def _refusing_expectations(handler: Handler, lane: Lane | None) -> Handler:
    """What aiohttp says to an unknown `Expect` repeats it, and is said before any middleware is asked.

    A known one (100-continue) is answered by the application.
    """

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        expected = request.headers.get("Expect")
        if expected is None:
            answer = lane(request) if lane is not None else None
            return answer or handler(request)
        return handler(request) if expected.lower() == "100-continue" else _refuse(request)

    return handle


async def _refuse(request: web.BaseRequest) -> web.StreamResponse:
    return request.protocol.handle_error(request, 400, web.HTTPExpectationFailed())


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """TLS for a listening port. Raises `OSError` or `ssl.SSLError` when the files cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context
