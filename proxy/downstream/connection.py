"""A client's TCP connection: aiohttp's, with our words for what cannot be parsed, deadlines for a request's head and
for a reader that has stopped, and a word to whoever waits for a slow one."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import WSCloseCode, web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from proxy.errors import GatewayError, InternalError, InvalidRequest, RequestTimeout
from proxy.protocols.openai import OPENAI
from proxy.wire.frames import close_frame
from proxy.wire.headers import new_request_id
from proxy.wire.masking import MaskWatch

WRITE_BUFFER_BYTES = 64 * 1024
"""What may wait for a slow reader before its upstream is paused; one more batch may come on top."""
UNSENT_BYTES = 32 * 1024
"""What the kernel may hold unsent (TCP_NOTSENT_LOWAT): without it a stopped reader is noticed megabytes late."""
STALLED_S = 60.0
"""How long a reader may take nothing of what waits for it, before its connection is dropped."""
KEEPALIVE_S = 75.0
MAX_LINE_BYTES = 8190
MAX_FIELD_BYTES = 16 * 1024
MAX_HEADERS = 100
LAST_WORDS_S = 0.2
"""How long a handler may go on when the gateway stops; who wanted to let it finish has drained before."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Lane = Callable[[web.BaseRequest], Awaitable[web.StreamResponse] | None]


class ClientConnection(RequestHandler):
    """aiohttp's connection, which calls back when a slow reader has caught up, and drops one that has stopped."""

    def __init__(
        self, manager: web.Server, *, head_timeout_s: float | None, now: Callable[[], float], **settings: Any
    ) -> None:
        super().__init__(manager, **settings)
        self.now = now
        """The loop's clock, one object for all connections: what many share stays in the processor's cache."""
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._on_writing: Callable[[bool], None] | None = None
        self._outgoing: asyncio.Transport | None = None
        self._masks: MaskWatch | None = None
        self._waiting_bytes = 0
        self._stalled_timer: asyncio.TimerHandle | None = None
        self.visitor: object = None
        """What the gate remembers of the last request's head; it is gone with the connection."""

    def tell_of_writing(self, callback: Callable[[bool], None] | None) -> None:
        """Call `callback(paused)` when the reader falls behind, and when it has caught up; None: no more."""
        self._on_writing = callback

    def require_masks(self) -> None:
        """From here on the client speaks WebSocket: an unmasked frame ends the connection with 1002."""
        self._masks = MaskWatch()
        self._check_masks(self._message_tail)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._outgoing = cast("asyncio.Transport", transport)
        self._outgoing.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_NOTSENT_LOWAT") and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._masks is not None and not self._check_masks(data):
            return
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_body()
        waiting = self._waiter is not None and not self._waiter.done()
        if waiting != (self._head_timer is not None):
            self._watch_head(waiting)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Asked for after every piece of a body; only a reading that was paused has anything to resume."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()
        if self._on_writing is not None:
            self._on_writing(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_reader()
        if self._on_writing is not None:
            self._on_writing(False)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._watch_head(False)
        self._stop_watching_reader()
        self._on_writing = None
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What could not be parsed, or failed past every other edge: a short answer that repeats nothing of it."""
        error: GatewayError
        if status == 400:
            error = InvalidRequest("The request is not valid HTTP/1.1.")
            self.logger.info("a malformed request was answered with 400 (%s)", type(exc).__name__)
        else:
            error = InternalError("The gateway failed; its log says why.")
            self.logger.error("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        request_id = new_request_id()
        response = web.Response(
            status=error.status,
            body=OPENAI.error_body(error, request_id),
            content_type="application/json",
            headers={
                "Connection": "close",  # said out loud: aiohttp answers as HTTP/1.0 what it could not parse
                "Server": "penstock",
                "x-request-id": request_id,
                "x-penstock-source": "gateway",
            },
        )
        response.force_close()
        return response

    def _check_masks(self, data: bytes) -> bool:
        assert self._masks is not None
        if self._masks.all_masked(data):
            return True
        if self._outgoing is not None and not self._outgoing.is_closing():
            self._outgoing.write(close_frame(WSCloseCode.PROTOCOL_ERROR, "unmasked"))
        self.force_close()
        return False

    def _watch_reader(self) -> None:
        """A reader that is behind must take something in time."""
        assert self._outgoing is not None
        self._waiting_bytes = self._outgoing.get_write_buffer_size()
        self._stalled_timer = self._loop.call_later(STALLED_S, self._check_reader)

    def _check_reader(self) -> None:
        assert self._outgoing is not None
        if self._outgoing.get_write_buffer_size() < self._waiting_bytes:
            self._watch_reader()
        else:
            self._outgoing.abort()

    def _stop_watching_reader(self) -> None:
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None

    def _break_body(self) -> None:
        """Bytes that cannot be parsed while a body is read: aiohttp would let its reader wait for more."""
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(RequestPayloadError())
            request.content.feed_eof()

    def _watch_head(self, waiting: bool) -> None:
        """A head that has begun must be whole in time."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if waiting and self._head_timeout_s is not None:
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._give_up_on_head)

    def _give_up_on_head(self) -> None:
        self._head_timer = None
        if self.transport is not None and self._waiter is not None and not self._waiter.done():
            body = OPENAI.error_body(RequestTimeout("The request's head did not come in time."), "")
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"Server: penstock\r\nx-request-id: %b\r\nx-penstock-source: gateway\r\nContent-Length: %d\r\n\r\n%b"
                % (new_request_id().encode(), len(body), body)
            )
            self.force_close()


class ClientServer(web.Server):
    """Makes a `ClientConnection` of each accepted socket. Unlike aiohttp's, it fails on a setting it does not know."""

    def __init__(
        self,
        handler: Handler,
        head_timeout_s: float | None,
        **rest: Any,
    ) -> None:
        super().__init__(handler, handler_cancellation=True, **rest)
        self._head_timeout_s = head_timeout_s
        self._now = asyncio.get_running_loop().time

    def __call__(self) -> RequestHandler:
        return ClientConnection(
            self,
            head_timeout_s=self._head_timeout_s,
            now=self._now,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            lingering_time=1.0,
        )


class ClientRunner(web.AppRunner):
    """Runs an application on `ClientServer`. A request's head may take `head_timeout_s` seconds (None: for ever).

    `lane` may take a request before the application sees it: it gives None, or what will be the answer.
    """

    def __init__(self, app: web.Application, head_timeout_s: float | None, lane: Lane | None = None) -> None:
        super().__init__(app, shutdown_timeout=LAST_WORDS_S)
        self._head_timeout_s = head_timeout_s
        self._lane = lane

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return ClientServer(
            _refusing_expectations(made.request_handler, self._lane),
            self._head_timeout_s,
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
