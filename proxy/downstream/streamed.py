"""A streamed HTTP answer, pushed straight to the transport: its head, then one chunk and one write for all the events
of one upstream read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import HttpVersion11, web

from proxy.downstream.client_socket import ClientSocket
from proxy.downstream.outlet import LARGE_BYTES, Outlet
from proxy.downstream.written import PushedResponse, head_of, write_now
from proxy.errors import GatewayError
from proxy.streams.stream import Stream
from proxy.wire.headers import Header
from proxy.wire.sse import Event

CHUNKED: Header = ("Transfer-Encoding", "chunked")


class StreamedAnswer:
    """Answers an HTTP request with what a stream has: `response` is what the handler returns.

    `finished` is done when the answer is written to its end. `keepalive` goes out after `keepalive_s` seconds without
    an event (None: never). The owner's duty: `close` it.
    """

    __slots__ = (
        "_chunked",
        "_headers",
        "_keepalive",
        "_keepalive_s",
        "_outlet",
        "_request",
        "_terminal_error",
        "finished",
        "response",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        status: int,
        headers: list[Header],
        *,
        keepalive: bytes,
        keepalive_s: float | None,
    ) -> None:
        self._request = request
        self._headers = headers
        self._chunked = request.version >= HttpVersion11  # else the connection's end is the body's
        self.response = PushedResponse(status, stays=self._chunked and request.keep_alive)
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keepalive = keepalive
        self._keepalive_s = keepalive_s
        self._outlet: _Body | None = None
        self._terminal_error: Callable[[GatewayError], bytes] = _unspoken

    def begin(self) -> None:
        """Write the head; from here on silence is filled with keep-alives.

        Raises `ConnectionError` when the client has left.
        """
        headers = [*self._headers, CHUNKED] if self._chunked else self._headers
        stays = bool(self.response.keep_alive)
        write_now(self._request, head_of(self._request, self.response.status, headers, stays=stays))
        self._outlet = (_ChunkedBody if self._chunked else _Body)(self._request, self._end)
        self._outlet.break_silence(self._keepalive_s, self.keep_alive)

    def follow(self, stream: Stream, terminal_error: Callable[[GatewayError], bytes]) -> None:
        """Write what `stream` has and gets, to its end; `terminal_error` words how it broke off (b"": cut the body)."""
        assert self._outlet is not None
        self._terminal_error = terminal_error
        self._outlet.serve(stream)
        stream.attach(self._outlet)

    def keep_alive(self) -> None:
        """Show a sign of life."""
        self._put(self._keepalive)

    def end_with(self, last_words: bytes) -> None:
        """Write these bytes, if any, and the end of the body."""
        if last_words:
            self._put(last_words)
        if self._chunked and self._outlet is not None:
            self._outlet.put(b"0\r\n\r\n")
        self._finish()

    def close(self) -> int:
        """Leave the connection to aiohttp; the number of bytes that went out."""
        if self._outlet is None:
            return 0
        self._outlet.close()
        return self._outlet.bytes_out

    # ---- within ----

    def _end(self, error: GatewayError | None) -> None:
        last_words = self._terminal_error(error) if error is not None else b""
        if error is not None and not last_words:
            self._cut()
        else:
            self.end_with(last_words)

    def _put(self, data: bytes) -> None:
        assert self._outlet is not None
        self._outlet.put(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _cut(self) -> None:
        """End the connection instead of the body: the missing last chunk tells the client that it is not whole."""
        self.response.force_close()
        if self._outlet is not None:
            self._outlet.cut()
        self._finish()

    def _finish(self) -> None:
        if self._outlet is not None:
            self._outlet.break_silence(None, self.keep_alive)  # one more would stand in front of the next answer
        if not self.finished.done():
            self.finished.set_result(None)


def _unspoken(error: GatewayError) -> bytes:
    return b""


class _Body(Outlet):
    """A stream's listener: its events are the body, which lasts as long as the connection (HTTP/1.0)."""

    __slots__ = ("_on_end",)

    def __init__(self, request: web.BaseRequest, on_end: Callable[[GatewayError | None], None]) -> None:
        connection = request.protocol
        assert isinstance(connection, ClientSocket)
        super().__init__(connection)
        self._on_end = on_end

    def write(self, events: list[Event]) -> bool:
        return self.put(b"".join([event.wire for event in events]))

    def end(self, error: GatewayError | None) -> None:
        self._on_end(error)


class _ChunkedBody(_Body):
    """The same in chunks: one for all the events of a read."""

    __slots__ = ()

    def write(self, events: list[Event]) -> bool:
        data = events[0].wire if len(events) == 1 else b"".join([event.wire for event in events])
        transport, now = self._transport, self._now
        if transport is None or transport.is_closing():
            return False
        size = len(data)
        if size > LARGE_BYTES:
            return self.put_pieces(b"%x\r\n" % size, data, b"\r\n")
        chunk = b"%x\r\n%b\r\n" % (size, data)
        self._last_put = now()
        self.bytes_out += len(chunk)
        transport.write(chunk)
        return self._full
