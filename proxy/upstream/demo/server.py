"""The built-in model's HTTP/1.1, in memory: request bytes in, requests out; an answer in, timed response bytes out.

When they are due in clock time, and who gets them, is the transport's business."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools

from proxy.upstream.demo.answer import Answer, Refusal, Streamed, Whole
from proxy.upstream.demo.model import answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.upstream.demo.answer import Stamp, Timed
    from proxy.upstream.demo.settings import DemoSettings

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `path` is without its query. `keep_alive` False: its answer is the connection's last."""

    method: str
    path: str
    body: bytes
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Malformed:
    """In the place of a request: bytes that are no HTTP/1.1. Nothing after them can be read."""

    keep_alive: bool = False


class RequestReader:
    """Reads requests from bytes cut anywhere, one after another on a connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._requests: list[Request | Malformed] = []
        self._readable = True

    def feed(self, data: bytes | bytearray | memoryview) -> list[Request | Malformed]:
        """The requests that these bytes complete."""
        if self._readable:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                self._readable = False  # nobody here speaks what would follow: answered as the plain request it also is
            except httptools.HttpParserError:
                self._readable = False
                self._requests.append(Malformed())
        requests, self._requests = self._requests, []
        return requests

    def on_message_begin(self) -> None:
        self._url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("ascii")
        path = self._url.decode("latin-1").partition("?")[0]
        keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._requests.append(Request(method, path, b"".join(self._body), keep_alive))


def answered(request: Request | Malformed, settings: DemoSettings, stamp: Stamp) -> Iterator[Timed]:
    """The bytes that answer a request, each with its delay."""
    if isinstance(request, Malformed):
        said: Answer = Refusal(400, "This is not an HTTP/1.1 request.").openai()
    else:
        said = answer(request.method, request.path, request.body, settings, stamp)
    return response(said, keep_alive=request.keep_alive)


def response(said: Answer, *, keep_alive: bool = True) -> Iterator[Timed]:
    """The answer's bytes on the wire. A stream's head comes at once, then each piece as a chunk of its own."""
    if isinstance(said, Whole):
        yield said.delay_s, _head(said, keep_alive) + said.body
        return
    yield 0.0, _head(said, keep_alive)
    for delay_s, piece in said.pieces:
        yield delay_s, b"%x\r\n%b\r\n" % (len(piece), piece)
    yield 0.0, LAST_CHUNK


def _head(said: Answer, keep_alive: bool) -> bytes:
    status = 200 if isinstance(said, Streamed) else said.status
    framing = "Transfer-Encoding: chunked" if isinstance(said, Streamed) else f"Content-Length: {len(said.body)}"
    connection = "" if keep_alive else "Connection: close\r\n"
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {said.content_type}\r\n{framing}\r\n{connection}\r\n"
    ).encode("latin-1")
