"""A streamed HTTP answer: its head is written by aiohttp, its body pushed straight to the transport, one chunk and one
write for all the events of one upstream read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from proxy.downstream.outlet import Outlet
from proxy.errors import GatewayError
from proxy.streams.stream import Stream
from proxy.wire.sse import Event


class PushedResponse(web.StreamResponse):
    """A response of which aiohttp writes the head only; its body has been pushed when aiohttp asks for the end."""

    async def write_eof(self, data: bytes = b"") -> None:
        self._eof_sent = True
        self._payload_writer = None


class StreamedAnswer:
    """A stream's listener that answers an HTTP request: `response` is what the handler returns.

    `finished` is done when the answer is written to its end. `keepalive` goes out after `keepalive_s` seconds without
    an event (None: never). The owner's duty: `close` it.
    """

    __slots__ = (
        "_chunked",
        "_keepalive",
        "_keepalive_s",
        "_outlet",
        "_terminal_error",
        "finished",
        "response",
    )

    def __init__(self, status: int, headers: CIMultiDict[str], *, keepalive: bytes, keepalive_s: float | None) -> None:
        self.response = PushedResponse(status=status, headers=headers)
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keepalive = keepalive
        self._keepalive_s = keepalive_s
        self._outlet: Outlet | None = None
        self._chunked = True
        self._terminal_error: Callable[[GatewayError], bytes] = _unspoken

    async def begin(self, request: web.Request) -> None:
        """Write the head; from here on silence is filled with keep-alives."""
        self._chunked = request.version >= HttpVersion11
        if not self._chunked:
            self.response.force_close()  # the end of the connection is the end of the body
        await self.response.prepare(request)
        self._outlet = Outlet(request)
        self._outlet.break_silence(self._keepalive_s, self.keep_alive)

    def follow(self, stream: Stream, terminal_error: Callable[[GatewayError], bytes]) -> None:
        """Write what `stream` has and gets, to its end; `terminal_error` words how it broke off (b"": cut the body)."""
        assert self._outlet is not None
        self._terminal_error = terminal_error
        self._outlet.serve(stream)
        stream.attach(self)

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

    # ---- the stream's side ----

    def write(self, events: list[Event]) -> bool:
        return self._put(events[0].wire if len(events) == 1 else b"".join([event.wire for event in events]))

    def end(self, error: GatewayError | None) -> None:
        last_words = self._terminal_error(error) if error is not None else b""
        if error is not None and not last_words:
            self._cut()
        else:
            self.end_with(last_words)

    # ---- within ----

    def _put(self, data: bytes) -> bool:
        assert self._outlet is not None
        return self._outlet.put(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _cut(self) -> None:
        """End the connection instead of the body: the missing last chunk tells the client that it is not whole."""
        self.response.force_close()
        if self._outlet is not None:
            self._outlet.cut()
        self._finish()

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


def _unspoken(error: GatewayError) -> bytes:
    return b""
