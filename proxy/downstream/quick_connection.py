"""A client's connection as long as it sends nothing but requests with known heads: no parser, no reader, no task but
the request's. Whatever else it sends is for aiohttp to read, which then has the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_writer import StreamWriter
from aiohttp.tcp_helpers import tcp_keepalive

from proxy.downstream.client_socket import HURRIED_S, KEEPALIVE_S, LINGER_S, ClientSocket, TakeOver
from proxy.downstream.known_body import KnownBody
from proxy.downstream.known_heads import KnownHead, KnownHeads
from proxy.wire.sized_heads import SizedHead, sized_head

if TYPE_CHECKING:
    from ssl import SSLContext

AHEAD_BYTES = 64 * 1024
"""What a client may send ahead of its answer before it is read no further."""

logger = logging.getLogger("penstock")


class QuickConnection(ClientSocket):
    """Answers requests whose heads are in `heads` by the server's handler, one after the other. `take_over` has it when
    something else is read.

    Towards `server` and the requests it stands for aiohttp's connection: what they ask of it has aiohttp's names.
    """

    __slots__ = (
        "_ahead",
        "_body",
        "_closes",
        "_heads",
        "_idle_since",
        "_idle_timer",
        "_known",
        "_on_writing",
        "_server",
        "_stalled",
        "_take_over",
        "_task_handler",
        "now",
        "peername",
        "ssl_context",
        "visitor",
    )
    sockname = None

    def __init__(
        self,
        server: web.Server,
        heads: KnownHeads,
        *,
        take_over: TakeOver,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop)
        self._server = server
        self._heads = heads
        self._take_over = take_over
        self.now = now
        self.visitor: object = None
        self.peername: Any = None
        self.ssl_context: SSLContext | None = None
        self._on_writing: Callable[[bool], None] | None = None
        self._stalled = None
        self._task_handler: asyncio.Task[None] | None = None  # of the request that is served
        self._known: KnownHead | None = None  # the same request's
        self._body: KnownBody | None = None  # the same request's
        self._ahead = b""  # what came behind it
        self._closes = False  # when it is served
        self._idle_since = self.now()
        self._idle_timer: asyncio.TimerHandle | None = None

    # ---- the transport's calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        tcp_keepalive(self.transport)
        self.peername = transport.get_extra_info("peername")
        self.ssl_context = transport.get_extra_info("sslcontext")
        self._server.connection_made(cast("Any", self), self.transport)
        self._idle_timer = self._loop.call_later(self._idle_s, self._check_idle)

    def data_received(self, data: bytes) -> None:
        if self._task_handler is not None:
            self._read_ahead(data)
        elif not self._closes:
            head = sized_head(data) if self.peername else None
            known = self._heads.find(self.peername[0], head) if head is not None else None
            if head is None or known is None:
                self.hand_over(data, known=False)
            else:
                self._begin(known, head, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.connection_lost(cast("Any", self), exc)
        self._stop_idle_timer()
        if self._task_handler is not None:
            self._task_handler.cancel()
        super().connection_lost(exc)

    def remember(self, request: web.BaseRequest, visitor: object) -> None:
        super().remember(request, visitor)
        if self._known is not None:
            self._known.visitor = visitor

    @property
    def awaits_request(self) -> bool:
        """The first one has not come, or not all of its body."""
        return self.visitor is None if self._body is None else not self._body.is_eof()

    # ---- the server's and the request's calls, as aiohttp names them ----

    def close(self) -> None:
        """Serve what is being served, and nothing after it."""
        self._closes = True
        if self._task_handler is None:
            self.force_close()

    def force_close(self) -> None:
        self._closes = True
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close; what is being served may take `timeout` seconds more."""
        self._closes = True
        serving = self._task_handler
        if serving is not None:
            await asyncio.wait([serving], timeout=timeout)
            serving.cancel()  # a reader that stopped would keep its connection, and so the request
        self.force_close()

    # ---- a request ----

    def _begin(self, known: KnownHead, head: SizedHead, data: bytes) -> None:
        self._known = known
        self.visitor = known.visitor
        self._body = body = KnownBody(self._loop, head.length)
        self._ahead = body.feed(data[head.body_at :])
        writer = StreamWriter(self, self._loop)
        make: Callable[..., web.BaseRequest] = self._server.request_factory
        request = make(known.message, body, self, writer, None)
        self._task_handler = self._loop.create_task(self._serve(request))

    async def _serve(self, request: web.BaseRequest) -> None:
        stays = False
        try:
            response = await self._server.request_handler(request)
            await response.prepare(request)
            await response.write_eof()
            stays = await self._has_whole_body() and bool(response.keep_alive)
        except ConnectionError:
            pass  # the client has left
        except Exception:
            logger.exception("a request failed")
        except asyncio.CancelledError:
            self.force_close()
            raise
        finally:
            self._task_handler = None
        self._body = None
        if not stays or self._closes:
            self.force_close()
        else:
            self._go_on()

    async def _has_whole_body(self) -> bool:
        """Whether all of it has come, if need be after a while: it may have been refused in the middle."""
        assert self._body is not None
        if not self._body.is_eof():
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._body.whole(None)
        return self._body.is_eof()

    def _go_on(self) -> None:
        self._idle_since = self.now()
        if self._ahead:
            data, self._ahead = self._ahead, b""
            if self._reading_paused:
                self._reading_paused = False
                self._resume_transport_reading()
            self.data_received(data)

    def _read_ahead(self, data: bytes) -> None:
        assert self._body is not None
        self._ahead += self._body.feed(data)
        if len(self._ahead) > AHEAD_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._pause_transport_reading()

    # ---- between requests ----

    @property
    def _idle_s(self) -> float:
        return HURRIED_S if self.is_one_too_many else KEEPALIVE_S

    def _check_idle(self) -> None:
        self._idle_timer = None
        now = self.now()
        since = now if self._task_handler is not None else self._idle_since
        if since + self._idle_s <= now:
            self.force_close()
        else:
            self._idle_timer = self._loop.call_at(since + self._idle_s, self._check_idle)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
