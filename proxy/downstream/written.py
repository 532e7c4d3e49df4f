"""Answers that we write ourselves, head and body, past aiohttp's response and its hooks: every relayed one.

What aiohttp gets of them is a response with nothing left to write. Which headers an answer has is `answering`'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from aiohttp import HttpVersion10, HttpVersion11, web

from proxy.wire.headers import Header, answer_head, http_date

EMPTY_STATUSES = frozenset({204, 304})
"""They have no body, and say nothing of its length (RFC 9110, 8.6)."""


class PushedResponse(web.StreamResponse):
    """Tells aiohttp the status of an answer that is pushed to the client, and whether the connection `stays`."""

    def __init__(self, status: int, *, stays: bool) -> None:
        super().__init__(status=status)
        self._keep_alive = stays

    async def prepare(self, request: web.BaseRequest) -> None:
        """Its head is ours to write."""

    async def write_eof(self, data: bytes = b"") -> None:
        self._eof_sent = True


class WrittenResponse(PushedResponse):
    """A whole answer in ready bytes: they leave in one write when aiohttp asks for the end."""

    def __init__(self, request: web.BaseRequest, status: int, headers: Sequence[Header], body: bytes) -> None:
        super().__init__(status, stays=request.keep_alive)
        if status in EMPTY_STATUSES:
            self._data = head_of(request, status, headers, stays=request.keep_alive)
        else:
            framed = (*headers, ("Content-Length", str(len(body))))
            self._data = head_of(request, status, framed, stays=request.keep_alive) + body
        self._request = request

    async def write_eof(self, data: bytes = b"") -> None:
        """Raises `ConnectionError` when the client has left."""
        write_now(self._request, self._data)
        self._eof_sent = True
        if self._request.protocol.writing_paused:
            await self._request.writer.drain()


def head_of(request: web.BaseRequest, status: int, headers: Sequence[Header], *, stays: bool) -> bytes:
    """The head of the answer to `request` in bytes. Raises `ValueError` for a header that would end its line."""
    version = request.version
    lines = [*headers, ("Date", http_date(time.time())), ("Server", "penstock")]
    if stays and version == HttpVersion10:
        lines.append(("Connection", "keep-alive"))
    elif not stays and version == HttpVersion11:
        lines.append(("Connection", "close"))
    return answer_head(version, status, lines)


def write_now(request: web.BaseRequest, data: bytes) -> None:
    """Hand `data` to the client's transport. Raises `ConnectionError` when the client has left."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has left")
    request.writer.output_size += len(data)
    transport.write(data)
