"""One HTTP/1.1 connection to a model server: requests out, answers pushed to their receiver as their bytes arrive.

It knows framing (heads and plain bodies by llhttp in its strict mode, chunks by `wire.chunked`) and nothing of events;
what an answer means is the exchange's business, and which connection serves whom is the pool's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import httptools

from proxy.errors import StaleConnection, UpstreamError, UpstreamInvalid, UpstreamTruncated, UpstreamUnreachable
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.deadlines import Deadlines
from proxy.upstream.gather import Gatherer
from proxy.upstream.known_answers import KnownAnswer, KnownAnswers
from proxy.wire.chunked import ChunkedBody, ChunkingError, known_size
from proxy.wire.json_members import Piece

MAX_HEAD_BYTES = 64 * 1024
"""Of the head; and of trailers or chunk extensions that come without a byte of the body."""
MAX_HEADERS = 128
FINISH_WITHIN_S = 1.0
"""How long the rest of an answer that nobody listens to any more may take before the connection is closed."""

_known_answers = KnownAnswers()  # of all connections: what bytes mean does not depend on where they come from


class Receiver(Protocol):
    """Who gets an answer. Calls come from the event loop's read, in this order, and end with one of the last two."""

    def head_received(self, head: AnswerHead) -> None: ...

    def body_received(self, data: bytes) -> None:
        """The body's bytes of one read, without their framing."""

    def answer_ended(self) -> None:
        """The body is whole, as HTTP sees it."""

    def answer_broken(self, error: UpstreamError) -> None:
        """The answer will not be whole. The connection is closed already."""


class UpstreamConnection(asyncio.Protocol):
    """One connection, one exchange at a time.

    `on_idle(connection)` is called when an answer ended and the connection may serve another; `on_lost(connection)`
    once, when it is gone.
    """

    __slots__ = (
        "_awaited",
        "_between_chunks",
        "_busy",
        "_chunks",
        "_ended",
        "_finish_timer",
        "_framing_bytes",
        "_gatherer",
        "_head",
        "_head_end",
        "_header_bytes",
        "_headers",
        "_in_head",
        "_keep_alive",
        "_on_idle",
        "_on_lost",
        "_parser",
        "_paused",
        "_pieces",
        "_receiver",
        "_served",
        "_transport",
        "_until_close",
        "deadlines",
        "on_body",
    )

    def __init__(
        self,
        on_idle: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection], None],
        gatherer: Gatherer | None = None,
    ) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._gatherer = gatherer
        self.deadlines = Deadlines()
        """For its exchanges to set, and to stop."""
        self._awaited: int | None = None
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # llhttp's: the parser asks for it once
        self._parser: httptools.HttpResponseParser | None = None
        self._receiver: Receiver | None = None
        self._served = 0
        self._paused = False
        self._finish_timer: asyncio.TimerHandle | None = None
        self._chunks: ChunkedBody | None = None
        self._rest()

    def _rest(self) -> None:
        """Nothing under way: the state between two exchanges."""
        self._busy = False
        self._in_head = True
        self._ended = False
        self._until_close = False
        self._framing_bytes = 0
        self._header_bytes = 0
        self._keep_alive = False
        self._headers: list[tuple[str, str]] = []
        self._head: AnswerHead | None = None
        self._head_end = b""
        self._chunks = None
        self._between_chunks = False
        self._pieces.clear()

    # ---- the exchange's side ----

    @property
    def usable(self) -> bool:
        """Whether a request can be sent now."""
        return not self._busy and self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes | Sequence[Piece], receiver: Receiver) -> None:
        """Send one whole request, if need be in pieces; its answer is pushed to `receiver`. The caller's duty: only
        when `usable`."""
        assert self._transport is not None
        self._busy = True
        self._receiver = receiver
        if self._gatherer is not None and (raw := self._transport.get_extra_info("socket")) is not None:
            self._awaited = raw.fileno()
            self._gatherer.await_first(self._awaited)
        if isinstance(request, bytes):
            self._transport.write(request)
        else:
            self._transport.writelines(request)

    def flow(self) -> None:
        """The answer's first content came: what follows may be gathered with what other connections bring."""
        if self._awaited is not None and self._gatherer is not None:
            self._gatherer.first_came(self._awaited)
            self._awaited = None

    def pause(self) -> None:
        """Read no more until `resume`: somebody downstream is full."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def finish(self) -> None:
        """The receiver has all it wants: let the framing's last bytes come, so that the connection can be kept."""
        self._receiver = None
        self.resume()
        if self._busy and not self._ended:
            loop = asyncio.get_running_loop()
            self._finish_timer = loop.call_later(FINISH_WITHIN_S, self.close)

    def close(self) -> None:
        """Drop the connection at once; the receiver hears nothing more."""
        self._receiver = None
        self.flow()
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The way of every read. Calls are spared here: each one touches memory that the last one did not."""
        gatherer = self._gatherer
        if gatherer is not None and self._awaited is None:
            if not gatherer.reads:
                gatherer.begin_turn()
            gatherer.reads += 1
        if self._between_chunks and self._receiver is not None:
            size_end = data.find(b"\r\n")
            size = known_size(data[:size_end])
            if size is not None and len(data) == size_end + size + 4 and data[-2:] == b"\r\n":
                self._receiver.body_received(data[size_end + 2 : -2])
                return
        self._read(data)

    def _read(self, data: bytes) -> None:
        """Any read: of a head, of a body in any framing, of nothing that was asked for."""
        if not self._busy:
            self.close()  # an idle server has nothing to say
            return
        read_bytes = len(data)
        try:
            if self._in_head:
                known = None if self._framing_bytes else _known_answers.find(data)
                data = self._read_head(data) if known is None else self._begin_known(known, data)
            if self._chunks is not None:
                self._chunks.feed(data, self._pieces)
                self._ended = self._chunks.ended
            elif data and self._parser is not None:
                self._parser.feed_data(data)
            self._count_framing(read_bytes)
        except (ChunkingError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._deliver()
            cause = error.__context__
            self._break(cause if isinstance(cause, UpstreamInvalid) else UpstreamInvalid("the answer is not HTTP/1.1"))
            return
        except UpstreamInvalid as error:
            self._break(error)
            return
        self._deliver()
        if self._ended:
            self._end(keep=self._keep_alive)
        elif self._chunks is not None:
            self._between_chunks = self._chunks.between_chunks

    def _begin_known(self, known: KnownAnswer, data: bytes) -> bytes:
        """The answer's head is known; the rest of `data`, where it is not the whole body."""
        self._in_head = False
        self._head = known.head
        self._keep_alive = known.keep_alive
        body = data[known.body_at :]
        if known.chunked:
            self._chunks = ChunkedBody()
            return body
        self._ended = True
        if body:
            self._pieces.append(body)
        return b""

    def _read_head(self, data: bytes) -> bytes:
        """Give llhttp what belongs to heads; the rest, which is the body's."""
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
        begun = self._framing_bytes > 0
        read = data
        while self._in_head and data:
            end = (self._head_end + data).find(b"\r\n\r\n") + 4 - len(self._head_end)
            if end < 1:
                end = len(data)
            self._head_end = (self._head_end + data[:end])[-3:]
            parser.feed_data(data[:end])
            data = data[end:]
        if self._chunks is not None:
            self._parser = None  # it would take the chunks for a body of its own
        if not (begun or self._in_head or self._until_close or self._head is None):
            chunked = self._chunks is not None
            body_at = len(read) - len(data)
            _known_answers.learn(read, body_at, self._head, keep_alive=self._keep_alive, chunked=chunked)
        return data

    def _count_framing(self, read_bytes: int) -> None:
        self._framing_bytes = 0 if self._pieces else self._framing_bytes + read_bytes
        _check_size(self._framing_bytes)

    def eof_received(self) -> bool:
        self._stop(clean=True)  # now: the transport itself closes only once the request has been sent
        return False  # close our side too: a server that half-closes has said all

    def connection_lost(self, exc: Exception | None) -> None:
        self.flow()
        self.deadlines.close()
        self._transport = None
        self._parser = None
        if self._finish_timer is not None:
            self._finish_timer.cancel()
        self._on_lost(self)
        self._stop(clean=exc is None)

    # ---- llhttp's side ----

    def on_message_begin(self) -> None:
        if self._ended:
            raise UpstreamInvalid("bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= MAX_HEADERS:
            raise UpstreamInvalid("the answer has too many headers")
        self._header_bytes += len(name) + len(value)
        _check_size(self._header_bytes)
        if self._in_head:  # else a trailer: nothing here needs one
            self._headers.append((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._headers = []
            return
        if self._parser.get_http_version() not in ("1.1", "1.0") or not 100 < status < 600:
            raise UpstreamInvalid("the answer is not HTTP/1.1")
        head = AnswerHead(status, tuple(self._headers))
        self._until_close = _check_framing(head)
        self._head = head
        if not self._until_close and (head.get("transfer-encoding") is not None):
            self._chunks = ChunkedBody()
        self._keep_alive = self._parser.should_keep_alive()  # forgotten once the message is complete
        self._in_head = False

    def on_message_complete(self) -> None:
        if not self._in_head:  # else it was an interim answer (100, 103)
            self._ended = True

    # ---- within ----

    def _deliver(self) -> None:
        """Give the receiver what the parser has found: the head, then the body's bytes."""
        if self._head is not None:
            head, self._head = self._head, None
            if self._receiver is not None:
                self._receiver.head_received(head)
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if self._receiver is not None:
                self._receiver.body_received(data)

    def _end(self, *, keep: bool) -> None:
        receiver, self._receiver = self._receiver, None
        if self._finish_timer is not None:
            self._finish_timer.cancel()
            self._finish_timer = None
        self._served += 1
        self.flow()
        self._rest()
        if self._transport is not None:
            if keep and self.usable and not self._transport.get_write_buffer_size():
                self.resume()
                self._on_idle(self)
            else:  # an answer before the request was read: nobody may read the rest of it
                self._transport.abort()
        if receiver is not None:
            receiver.answer_ended()

    def _stop(self, *, clean: bool) -> None:
        """Nothing more will come."""
        if self._busy:
            if self._until_close and clean:
                self._end(keep=False)
            else:
                self._break(self._loss())

    def _break(self, error: UpstreamError) -> None:
        receiver = self._receiver
        self._busy = False
        self.close()
        if receiver is not None:
            receiver.answer_broken(error)

    def _loss(self) -> UpstreamError:
        if not self._in_head:
            return UpstreamTruncated("the connection was lost before the answer was whole")
        if self._served and not self._framing_bytes:
            return StaleConnection("a kept connection was closed before it answered")
        return UpstreamUnreachable("the connection was closed before an answer came")


def _check_size(framing_bytes: int) -> None:
    if framing_bytes > MAX_HEAD_BYTES:
        raise UpstreamInvalid("the answer's head or trailer is too large")


def _check_framing(head: AnswerHead) -> bool:
    """Whether the body lasts until the connection closes; raises `UpstreamInvalid` for what llhttp lets through."""
    lengths = encodings = 0
    for name, value in head.headers:
        match name.lower():
            case "content-length":
                lengths += 1
            case "transfer-encoding":
                encodings += 1
                if value.strip().lower() != "chunked":
                    raise UpstreamInvalid("the answer has a transfer encoding other than chunked")
            case "content-encoding" if value.strip().lower() not in ("", "identity"):
                raise UpstreamInvalid("the answer is compressed though identity was asked")
            case _:
                pass
    if lengths + encodings > 1:
        raise UpstreamInvalid("the answer's length is given twice")
    if head.status == 101:
        raise UpstreamInvalid("the upstream switched protocols though nobody asked")
    return lengths + encodings == 0 and head.status not in (204, 304)
