"""A client's connection that aiohttp reads, with our words for what cannot be parsed and a deadline for each head.

Heads that may come again are learnt here; one that does is left to the quick connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from proxy.downstream.client_socket import ClientSocket, TakeOver
from proxy.errors import GatewayError, InternalError, InvalidRequest, RequestTimeout
from proxy.protocols.openai import OPENAI
from proxy.wire.headers import new_request_id
from proxy.wire.sized_heads import sized_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.downstream.known_heads import KnownHeads


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection behind an upgrade. `early` is what the client has sent since; `paused`: it is behind in reading."""

    server: web.Server
    transport: asyncio.Transport
    early: bytes
    paused: bool
    now: Callable[[], float]


class ClientConnection(ClientSocket, RequestHandler):
    """Aiohttp's connection. `take_over` has it when it reads one of `heads` between two requests."""

    __slots__ = (
        "_due",
        "_head",
        "_head_begun",
        "_head_timeout_s",
        "_head_timer",
        "_heads",
        "_on_writing",
        "_stalled",
        "_take_over",
        "now",
        "visitor",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        head_timeout_s: float | None,
        heads: KnownHeads | None,
        now: Callable[[], float],
        take_over: TakeOver,
        **settings: Any,
    ) -> None:
        super().__init__(manager, **settings)
        self.now = now
        self.visitor: object = None
        self._heads = heads
        self._head = b""  # the read that began with the last request's
        self._due = 0  # bytes of that request that have not come
        self._take_over = take_over
        self._head_begun = False
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._on_writing = None
        self._stalled = None

    def upgraded(self) -> Upgraded:
        """Leave the connection to who speaks WebSocket on it; the request that asked for that is answered by them.

        Raises `ConnectionError` when the client has left.
        """
        server = self._manager
        early, self._message_tail = self._message_tail, b""
        if self._buffer_paused:
            self._resume_reading_for_buffer()
        if server is None or self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("the client has left")
        transport, paused = self.let_go()
        assert transport is not None
        return Upgraded(server, transport, early, paused, self.now)

    def data_received(self, data: bytes) -> None:
        if self._heads is not None and self._is_handed_over(self._heads, data):
            return
        super().data_received(data)
        if self._upgraded:  # CONNECT too: whatever length it names, what follows it is no body
            self._heads = None
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_body()
        self._watch_head(self._request_count == 0 or (self._waiter is not None and not self._waiter.done()))

    @property
    def awaits_request(self) -> bool:
        """The first one has not come, or not all of its body."""
        request = self._current_request
        return self._request_count == 0 if request is None else not request.content.is_eof()

    def remember(self, request: web.BaseRequest, visitor: object) -> None:
        super().remember(request, visitor)
        if self._heads is not None and self._head and self.peername:
            self._heads.learn(self.peername[0], self._head, request._message, visitor)
        self._head = b""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Asked for after every piece of a body; only a reading that was paused has anything to resume."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._watch_head(False)
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

    def _is_handed_over(self, heads: KnownHeads, data: bytes) -> bool:
        """Whether `data` begins with a known head, and the quick connection goes on.

        Only as long as it is certain where a request begins: after whole ones of known lengths, each of them sent when
        the one before was answered.
        """
        waiter, peer = self._waiter, self.peername
        if self._due == 0 and (self._request_count == 0 if waiter is None else not waiter.done()) and peer:
            head = sized_head(data)
            if head is not None and heads.find(peer[0], head) is not None:
                self.hand_over(data, known=True)
                return True
            self._head = data
            self._due = 0 if head is None else head.body_at + head.length
        self._due -= len(data)
        if self._due < 0:
            self._heads = None
        return False

    def _break_body(self) -> None:
        """Bytes that cannot be parsed while a body is read: aiohttp would let its reader wait for more."""
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(RequestPayloadError())
            request.content.feed_eof()

    def _watch_head(self, begun: bool) -> None:
        """A head that has begun must be whole in time."""
        if begun == self._head_begun:
            return
        self._head_begun = begun
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if begun and self._head_timeout_s is not None:
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
