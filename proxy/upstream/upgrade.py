"""The WebSocket handshake with one replica: an upgrade goes out, and a socket, a refusal or a failure comes of it.

A refusal is HTTP like any other answer, and is read by those who read the others. Which replica is asked, and what
follows a failure, is `dialler`'s.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Final, cast

import httptools
from msgspec import Struct

from proxy.errors import FirstTokenTimeout, UpstreamError, UpstreamInvalid, UpstreamUnreachable
from proxy.request import ProxyRequest
from proxy.routing.replica import Replica
from proxy.routing.table import Route
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.connection import MAX_HEAD_BYTES, MAX_HEADERS, UpstreamConnection
from proxy.upstream.dialling import open_connection
from proxy.upstream.message import REQUEST_ID
from proxy.upstream.redaction import Redaction
from proxy.upstream.websocket import UpstreamSocket
from proxy.wire.headers import Header, request_head, towards_upstream
from proxy.wire.realtime import upstream_query
from proxy.wire.upgrade import (
    KEY_BYTES,
    BadUpgrade,
    UpgradeRefused,
    handshake_key,
    selected_subprotocol,
    upgrade_headers,
)

MAX_REFUSAL_BYTES: Final = 1 << 20
_SWITCHES: Final = b"HTTP/1.1 101"
_HEAD_END: Final = b"\r\n\r\n"

OnOver = Callable[[UpstreamError | None], None]


class SocketLimits(Struct, frozen=True):
    """The largest message in bytes; seconds of silence before a ping (None: never)."""

    message_bytes: int
    ping_s: float | None


async def upgrade(
    request: ProxyRequest,
    offered: Sequence[str],
    route: Route,
    replica: Replica,
    limits: SocketLimits,
    *,
    tls: ssl.SSLContext | None,
    on_connected: Callable[[], None],
    on_over: OnOver,
) -> UpstreamSocket:
    """An open socket to the replica; `on_over` is then called once, as `UpstreamSocket` says.

    Raises `UpgradeRefused` with what the replica may be quoted with, or `UpstreamError`. Cancelling closes the
    connection.
    """
    key = handshake_key(os.urandom(KEY_BYTES))
    message = upgrade_message(request, offered, route, replica, key)
    asking = await open_connection(_Asking, replica.origin, route.timeouts.connect_s, tls)
    on_connected()
    try:
        switched = await _answer(asking, message, route.timeouts.first_token_s)
        return UpstreamSocket(
            switched.transport,
            selected_subprotocol(switched.head.headers, key, offered),
            max_message_bytes=limits.message_bytes,
            ping_s=limits.ping_s,
            on_over=on_over,
            unread=switched.unread,
        )
    except BaseException as error:
        asking.close()
        if isinstance(error, UpgradeRefused):
            redaction = Redaction(replica.headers)
            raise UpgradeRefused(error.status, redaction.headers(error.headers), redaction.data(error.body)) from None
        if isinstance(error, BadUpgrade):
            raise UpstreamInvalid(f"the upgrade went wrong: {error}") from error
        raise


async def _answer(asking: _Asking, message: bytes, timeout_s: float | None) -> _Switched:
    try:
        async with asyncio.timeout(timeout_s):
            asking.send(message)
            switched = await asking.switched
    except TimeoutError as error:
        raise FirstTokenTimeout(f"nothing came within timeouts.first_token ({timeout_s:g} s)") from error
    if switched.transport.is_closing():
        raise UpstreamUnreachable("the connection was closed as soon as it was upgraded")
    return switched


def upgrade_message(request: ProxyRequest, offered: Sequence[str], route: Route, replica: Replica, key: str) -> bytes:
    """The upgrade as this replica gets it: its own name of the model, its own credentials, nothing it need not know."""
    own = {name.lower() for name, _ in replica.headers}
    passed = [*towards_upstream(request.headers, keep_credentials=route.passthrough), *request.forwarded]
    passed.append((REQUEST_ID, request.request_id))
    headers = [
        ("Host", replica.origin.authority),
        *(header for header in passed if header[0].lower() not in own),
        *(header for header in replica.headers if header[0].lower() != "accept-encoding"),
        ("Accept-Encoding", "identity"),
        *upgrade_headers(key, offered),
    ]
    target = replica.target(request.path, upstream_query(request.query, route.upstream_model))
    return request_head("GET", target, headers)


class _Switched(Struct, frozen=True):
    """A 101, the connection it came on, and what came behind it."""

    head: AnswerHead
    transport: asyncio.Transport
    unread: bytes


class _Asking(asyncio.Protocol):
    """A connection up to the answer's head. If that is no 101, an `UpstreamConnection` reads the answer."""

    def __init__(self) -> None:
        self.switched: asyncio.Future[_Switched] = asyncio.get_running_loop().create_future()
        """Or `UpgradeRefused`, or `UpstreamError`."""
        self._http = UpstreamConnection(on_idle=UpstreamConnection.close, on_lost=_nothing)
        self._transport: asyncio.Transport | None = None
        self._read = b""

    def send(self, message: bytes) -> None:
        """Raises `UpstreamUnreachable` where the connection is gone already."""
        if not self._http.usable:
            raise UpstreamUnreachable("the connection was closed as soon as it was made")
        self._http.send(message, _Refusal(self.switched))

    def close(self) -> None:
        self._http.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(_HEAD_END)
        if self._read.startswith(_SWITCHES) and end >= 0:
            self._switch(end + len(_HEAD_END))
        elif not _SWITCHES.startswith(self._read[: len(_SWITCHES)]) or len(self._read) > MAX_HEAD_BYTES:
            self._answer_over_http()

    def eof_received(self) -> bool:
        self._answer_over_http()
        return self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)

    def _switch(self, end: int) -> None:
        assert self._transport is not None
        try:
            head = AnswerHead(101, _headers(self._read[:end]))
        except UpstreamInvalid as error:
            self._fail(error)
            return
        self._transport.pause_reading()  # nobody listens yet
        if not self.switched.done():
            self.switched.set_result(_Switched(head, self._transport, self._read[end:]))

    def _answer_over_http(self) -> None:
        assert self._transport is not None
        self._transport.set_protocol(self._http)
        read, self._read = self._read, b""
        if read:
            self._http.data_received(read)

    def _fail(self, error: UpstreamError) -> None:
        if not self.switched.done():
            self.switched.set_exception(error)


class _Refusal:
    """An `UpstreamConnection`'s receiver: an answer that is no upgrade."""

    def __init__(self, switched: asyncio.Future[_Switched]) -> None:
        self._switched = switched
        self._head: AnswerHead | None = None
        self._body = bytearray()

    def head_received(self, head: AnswerHead) -> None:
        self._head = head
        if head.status < 400:
            self._fail(UpstreamInvalid(f"it answered an upgrade with status {head.status}"))

    def body_received(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_REFUSAL_BYTES:
            self._fail(UpstreamInvalid("it refused an upgrade with too large an answer"))

    def answer_ended(self) -> None:
        assert self._head is not None
        self._fail(UpgradeRefused(self._head.status, self._head.headers, bytes(self._body)))

    def answer_broken(self, error: UpstreamError) -> None:
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._switched.done():
            self._switched.set_exception(error)


class _Head:
    """What llhttp finds in the head of a 101."""

    def __init__(self) -> None:
        self.headers: list[Header] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise UpstreamInvalid("the answer has too many headers")
        self.headers.append((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")))


def _headers(data: bytes) -> tuple[Header, ...]:
    """The headers of a head that begins with `HTTP/1.1 101`. Raises `UpstreamInvalid`."""
    head = _Head()
    try:
        httptools.HttpResponseParser(head).feed_data(data)
    except httptools.HttpParserUpgrade:
        return tuple(head.headers)
    except httptools.HttpParserError as error:
        cause = error.__context__
        raise cause if isinstance(cause, UpstreamInvalid) else UpstreamInvalid("the answer is not HTTP/1.1") from error
    raise UpstreamInvalid("it switched to another protocol than WebSocket")


def _nothing(connection: UpstreamConnection) -> None:
    """No pool owns it."""
