"""What every client's connection has, whoever reads its requests: a word to those who wait for a slow reader, and an
end for one that has stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol, cast

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

from proxy.downstream.descriptors import Left, left_behind

WRITE_BUFFER_BYTES: Final = 64 * 1024
"""What may wait for a slow reader before its upstream is paused; one more batch may come on top."""
UNSENT_BYTES: Final = 32 * 1024
"""What the kernel may hold unsent (TCP_NOTSENT_LOWAT): without it a stopped reader is noticed megabytes late."""
KEEPALIVE_S: Final = 75.0
"""How long a connection may be idle."""
HURRIED_S: Final = 5.0
"""How long one may be that is one too many: others come to be told so, too."""
LINGER_S: Final = 1.0
"""How long the rest of a body is read that was refused: its sender would lose the answer with what is left unread."""
STALLED_S = 60.0
"""How long a reader may take nothing of what waits for it, before its connection is dropped."""


class TakeOver(Protocol):
    """Goes on with a connection by the other protocol."""

    def __call__(self, transport: asyncio.Transport, data: bytes, *, paused: bool, known: bool) -> None: ...


class ClientSocket(BaseProtocol):
    """Mixed into the protocols that read requests; they have its attributes.

    `now` is the loop's clock, one object for all connections: what many share stays in the processor's cache. `visitor`
    is what the gate remembers of the last request's head; it is gone with the connection. Where it `is_one_too_many`,
    descriptors run short, and its first request is its last.
    """

    now: Callable[[], float]
    visitor: object
    is_one_too_many: bool = False
    _on_writing: Callable[[bool], None] | None
    _stalled: _StalledReader | None
    _take_over: TakeOver

    def remember(self, request: web.BaseRequest, visitor: object) -> None:
        """The request that is served has been let in: its head means this `visitor`."""
        self.visitor = visitor

    def hand_over(self, data: bytes, *, known: bool) -> None:
        """The other protocol goes on with the connection, `data` first: the quick one, where its head is `known`."""
        transport, paused = self.let_go()
        if transport is not None:
            self._take_over(transport, data, paused=paused, known=known)

    def let_go(self) -> tuple[asyncio.Transport | None, bool]:
        """Leave the connection to another protocol: its transport, and whether the client is behind in reading."""
        transport, self.transport = self.transport, None
        paused = self._paused
        self.connection_lost(None)
        return transport, paused

    def tell_of_writing(self, callback: Callable[[bool], None] | None) -> None:
        """Call `callback(paused)` when the reader falls behind, and when it has caught up; None: no more."""
        self._on_writing = callback

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_NOTSENT_LOWAT") and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if raw is not None:
            self._find_room(cast("asyncio.Transport", transport), raw.fileno())

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._stalled = _StalledReader(self._loop, self.transport)
        if self._on_writing is not None:
            self._on_writing(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_reader()
        if self._on_writing is not None:
            self._on_writing(False)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_watching_reader()
        self._on_writing = None
        super().connection_lost(exc)

    def _find_room(self, transport: asyncio.Transport, descriptor: int) -> None:
        match left_behind(descriptor):
            case Left.FEW:
                self.is_one_too_many = True
            case Left.RESERVED:
                transport.abort()

    def _stop_watching_reader(self) -> None:
        if self._stalled is not None:
            self._stalled.stop()
            self._stalled = None


class _StalledReader:
    """Drops the connection of a reader that is behind, unless it takes something in time."""

    __slots__ = ("_loop", "_timer", "_transport", "_waiting_bytes")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._watch()

    def stop(self) -> None:
        self._timer.cancel()

    def _watch(self) -> None:
        self._waiting_bytes = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(STALLED_S, self._check)

    def _check(self) -> None:
        if self._transport.get_write_buffer_size() < self._waiting_bytes:
            self._watch()
        else:
            self._transport.abort()
