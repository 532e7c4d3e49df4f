"""A connection to a model server: framing, keep-alive, what is not HTTP; whole answers also cut at every byte."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.errors import StaleConnection, UpstreamError, UpstreamInvalid, UpstreamTruncated, UpstreamUnreachable
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.connection import FINISH_WITHIN_S, MAX_HEAD_BYTES, MAX_HEADERS, UpstreamConnection
from tests.support.memory_line import Answered, Clock, Line, cuts, turns
from tests.support.upstream import Peer, Script, answer, chunk, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = b"POST /v1/x HTTP/1.1\r\nHost: gpu\r\nContent-Length: 0\r\n\r\n"
HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def asked(line: Line) -> Answered:
    """The receiver of a request that was just sent."""
    answered = Answered()
    line.connection.send(REQUEST, answered)
    return answered


async def broken_by(*reads: bytes) -> UpstreamError:
    """How an answer breaks off by these reads alone; the connection is closed with it."""
    line = Line()
    answered = asked(line)
    line.transport.arrive(*reads)
    assert line.transport.closed
    await turns()
    assert (line.idle, line.lost) == (0, 1)
    [error] = answered.ends
    assert error is not None
    return error


# ---- whole answers ----


@pytest.mark.parametrize(
    ("raw", "status", "body", "kept"),
    [
        (HI, 200, b"hi", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 500\r\ncontent-length:2\r\nConnection: close\r\n\r\nno", 500, b"no", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", True),
        (CHUNKED + chunk(b"hel") + chunk(b"lo") + b"0\r\n\r\n", 200, b"hello", True),
        (CHUNKED + b"003;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n", 200, b"hello", True),
        (CHUNKED + b"0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 200, b"hi", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HI, 200, b"hi", True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + HI, 200, b"hi", True),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", True),
    ],
)
async def test_a_whole_answer_is_the_same_however_it_is_cut(raw: bytes, status: int, body: bytes, kept: bool) -> None:
    for reads in cuts(raw):
        line = Line()
        answered = asked(line)
        line.transport.arrive(*reads)
        assert answered.head is not None
        assert (answered.head.status, answered.body, answered.ends) == (status, body, [None]), reads
        assert (line.idle, line.connection.usable, line.transport.closed) == (int(kept), kept, not kept)
        line.connection.close()
        await turns(1)
        assert line.lost == 1


@pytest.mark.parametrize("headers", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
async def test_without_a_length_the_body_lasts_until_the_close(headers: bytes) -> None:
    for reads in cuts(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\nhello"):
        line = Line()
        answered = asked(line)
        line.transport.arrive(*reads)
        assert (answered.body, answered.ends) == (b"hello", [])
        line.transport.half_close()
        assert answered.ends == [None]
        await turns(1)
        assert (line.idle, line.lost, answered.ends) == (0, 1, [None])


async def test_the_head_is_given_as_it_was_sent() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(
        b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nX-A: b\xc3\xa9\xff\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n"
    )
    assert answered.head == AnswerHead(
        429, (("Retry-After", "3"), ("X-A", "bé\udcff"), ("x-a", "2"), ("Content-Length", "0"))
    )
    assert answered.head.get("x-a") == "bé\udcff"
    assert answered.head.get("retry-after") == "3"
    assert answered.head.get("nothing") is None


async def test_an_interim_answers_headers_are_not_the_answers() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(b"HTTP/1.1 103 Early\r\nX-Early: 1\r\n\r\n", HI)
    assert answered.head == AnswerHead(200, (("Content-Length", "2"),))


async def test_a_trailer_is_no_header() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(CHUNKED, chunk(b"hi"), b"0\r\nX-Late: 1\r\n\r\n")
    assert answered.head == AnswerHead(200, (("Transfer-Encoding", "chunked"),))


async def test_a_read_of_many_chunks_is_given_as_one() -> None:
    line = Line()
    bodies: list[bytes] = []

    class Counting(Answered):
        def body_received(self, data: bytes) -> None:
            bodies.append(data)

    line.connection.send(REQUEST, Counting())
    line.transport.arrive(CHUNKED + chunk(b"a") + chunk(b"b"), chunk(b"c") + b"0\r\n\r\n")
    assert bodies == [b"ab", b"c"]


# ---- keep-alive ----


async def test_a_kept_connection_serves_one_exchange_after_another() -> None:
    line = Line()
    for number in range(1, 4):
        answered = asked(line)
        assert not line.connection.usable
        line.transport.arrive(HI)
        assert (answered.body, answered.ends, line.idle) == (b"hi", [None], number)
        assert line.connection.usable
    assert line.transport.sent == REQUEST * 3


async def test_the_receiver_of_an_ended_answer_may_send_the_next_request() -> None:
    line = Line()
    second = Answered()

    class Following(Answered):
        def answer_ended(self) -> None:
            super().answer_ended()
            line.connection.send(REQUEST, second)

    first = Following()
    line.connection.send(REQUEST, first)
    line.transport.arrive(HI, HI)
    assert (first.ends, second.ends, line.idle) == ([None], [None], 2)


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(HI, HI)
    assert line.transport.closed
    assert not line.connection.usable
    assert answered.ends == [None]
    await turns()
    assert line.lost == 1


async def test_a_kept_connection_that_closes_unasked_tells_only_its_pool() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(HI)
    line.transport.half_close()
    await turns()
    assert (answered.ends, line.lost, line.connection.usable) == ([None], 1, False)


async def test_an_answer_before_the_request_was_read_ends_the_connection() -> None:
    line = Line()
    answered = asked(line)
    line.transport.unsent_bytes = 1
    line.transport.arrive(HI)
    assert (answered.body, answered.ends) == (b"hi", [None])
    assert (line.idle, line.transport.closed) == (0, True)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("raw", "finding"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"ICY 200 OK\r\n\r\n", "not HTTP"),
        (b"\x16\x03\x01\x00\x05hello", "not HTTP"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 000 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 600 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/0.9 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi", "other than chunked"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "other than chunked"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "other than chunked"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhi", "other than chunked"),
        (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "given twice"),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi", "compressed"),
        (b"HTTP/1.1 500 No\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nhi", "compressed"),
    ],
)
async def test_what_is_no_proper_answer_is_refused_however_it_is_cut(raw: bytes, finding: str) -> None:
    for reads in cuts(raw):
        line = Line()
        answered = asked(line)
        line.transport.arrive(*reads)
        assert line.transport.closed, reads
        [error] = answered.ends
        assert isinstance(error, UpstreamInvalid)
        assert finding in error.message
        assert answered.head is None, "a head that is refused must not count as an answer"
        await turns(1)
        assert (line.idle, line.lost, len(answered.ends)) == (0, 1, 1)


@pytest.mark.parametrize("tail", [b"", b"\r\n\r\nhi", b"\r\nContent-Length: 2\r\n\r\nhi"])
@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\nX: "]
)
@pytest.mark.parametrize("read_bytes", [1 << 20, 5000])
async def test_a_head_that_is_too_large_is_refused(start: bytes, tail: bytes, read_bytes: int) -> None:
    raw = start + b"x" * (MAX_HEAD_BYTES + 1) + tail
    error = await broken_by(*(raw[at : at + read_bytes] for at in range(0, len(raw), read_bytes)))
    assert isinstance(error, UpstreamInvalid)
    assert "too large" in error.message


async def test_a_large_head_is_taken_whole_and_in_pieces() -> None:
    filler = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 600) for number in range(100))
    raw = b"HTTP/1.1 200 OK\r\n" + filler + b"Content-Length: 2\r\n\r\nhi"
    for read_bytes in (1 << 20, 1000):
        line = Line()
        answered = asked(line)
        line.transport.arrive(*(raw[at : at + read_bytes] for at in range(0, len(raw), read_bytes)))
        assert (answered.body, answered.ends) == (b"hi", [None])


async def test_interim_answers_without_end_are_refused() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    error = await broken_by(*([interim] * (MAX_HEAD_BYTES // len(interim) + 1)))
    assert isinstance(error, UpstreamInvalid)


@pytest.mark.parametrize("endless", [b"0\r\nX-Trailer: ", b"2;"])
async def test_a_trailer_or_chunk_extension_without_end_is_refused(endless: bytes) -> None:
    error = await broken_by(CHUNKED + chunk(b"hi"), endless, *([b"x" * 4096] * (MAX_HEAD_BYTES // 4096 + 1)))
    assert isinstance(error, UpstreamInvalid)
    assert "too large" in error.message


async def test_a_long_stream_of_tiny_reads_is_no_large_head() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(CHUNKED)
    for _ in range(MAX_HEAD_BYTES // 4):
        line.transport.arrive(b"1\r\n", b"x", b"\r\n")
    line.transport.arrive(b"0\r\n\r\n")
    assert (len(answered.body), answered.ends) == (MAX_HEAD_BYTES // 4, [None])


async def test_too_many_headers_are_refused() -> None:
    within = b"".join(b"X-%d: y\r\n" % number for number in range(MAX_HEADERS - 1)) + b"Content-Length: 0\r\n"
    line = Line()
    answered = asked(line)
    line.transport.arrive(b"HTTP/1.1 200 OK\r\n" + within + b"\r\n")
    assert answered.ends == [None]
    error = await broken_by(b"HTTP/1.1 200 OK\r\n" + within + b"X-More: y\r\n\r\n")
    assert isinstance(error, UpstreamInvalid)
    assert "too many headers" in error.message


@pytest.mark.parametrize("size", [b"zz", b"-1", b"ffffffffffffffffff", b"2 ;", b"2\n"])
async def test_a_bad_chunk_size_breaks_the_answer_off_after_what_was_good(size: bytes) -> None:
    raw = CHUNKED + chunk(b"good") + size + b"\r\nbad\r\n"
    for reads in cuts(raw):
        line = Line()
        answered = asked(line)
        line.transport.arrive(*reads)
        assert answered.body == b"good"
        [error] = answered.ends
        assert isinstance(error, UpstreamInvalid)
        assert line.transport.closed
        await turns(1)
        assert len(answered.ends) == 1


@pytest.mark.parametrize("extra", [b"x", HI, b"HTTP/1.1 200 OK\r\n"])
async def test_bytes_after_the_end_in_the_same_read_break_the_answer_off(extra: bytes) -> None:
    error = await broken_by(HI + extra)
    assert isinstance(error, UpstreamInvalid)
    error = await broken_by(CHUNKED + chunk(b"hi") + b"0\r\n\r\n" + extra)
    assert isinstance(error, UpstreamInvalid)


# ---- loss ----


@pytest.mark.parametrize("loss", ["reset", "half_close"])
@pytest.mark.parametrize("raw", [HI, CHUNKED + chunk(b"hi") + b"0\r\nX: y\r\n\r\n"])
async def test_a_loss_at_any_byte_is_told_once(raw: bytes, loss: str) -> None:
    head_bytes = raw.index(b"\r\n\r\n") + 4
    for at in range(len(raw)):
        line = Line()
        answered = asked(line)
        line.transport.arrive(*([raw[:at]] if at else []))
        getattr(line.transport, loss)()
        await turns(2)
        [error] = answered.ends
        assert type(error) is (UpstreamUnreachable if at < head_bytes else UpstreamTruncated), at
        assert (line.idle, line.lost) == (0, 1)


async def test_a_reset_is_no_end_of_a_body_that_lasts_until_the_close() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(b"HTTP/1.1 200 OK\r\n\r\nhel")
    line.transport.reset()
    await turns()
    assert [type(error) for error in answered.ends] == [UpstreamTruncated]


@pytest.mark.parametrize("loss", ["reset", "half_close"])
async def test_a_kept_connection_that_dies_before_a_byte_was_stale(loss: str) -> None:
    line = Line()
    asked(line)
    line.transport.arrive(HI)
    answered = asked(line)
    getattr(line.transport, loss)()
    await turns()
    assert [type(error) for error in answered.ends] == [StaleConnection]


async def test_a_kept_connection_that_dies_after_a_byte_was_not_stale() -> None:
    line = Line()
    asked(line)
    line.transport.arrive(HI)
    answered = asked(line)
    line.transport.arrive(b"H")
    line.transport.reset()
    await turns()
    assert [type(error) for error in answered.ends] == [UpstreamUnreachable]


async def test_a_half_close_ends_the_answer_though_the_request_is_still_being_sent() -> None:
    line = Line()
    answered = asked(line)
    line.transport.unsent_bytes = 1 << 20
    line.transport.arrive(b"HTTP/1.1 413 Too Large\r\n\r\ntoo much")
    line.transport.half_close()
    assert (answered.body, answered.ends) == (b"too much", [None])
    assert line.transport.closed


# ---- close, pause, finish ----


async def test_after_close_the_receiver_hears_nothing() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(CHUNKED + chunk(b"a"))
    line.connection.close()
    line.connection.close()
    assert line.transport.closed
    await turns()
    assert (answered.body, answered.ends, line.lost) == (b"a", [], 1)


@pytest.mark.parametrize("call", ["head_received", "body_received"])
@pytest.mark.parametrize("rest", [b"", b"0\r\n\r\n", b"zz\r\n"])
async def test_a_receiver_may_close_from_within(call: str, rest: bytes) -> None:
    line = Line()

    class Closing(Answered):
        def head_received(self, head: AnswerHead) -> None:
            super().head_received(head)
            if call == "head_received":
                line.connection.close()

        def body_received(self, data: bytes) -> None:
            super().body_received(data)
            line.connection.close()

    answered = Closing()
    line.connection.send(REQUEST, answered)
    line.transport.arrive(CHUNKED + chunk(b"a") + rest, chunk(b"b"))
    await turns()
    assert answered.body == (b"" if call == "head_received" else b"a")
    assert (answered.ends, line.idle, line.lost) == ([], 0, 1)


async def test_a_paused_connection_reads_on_when_resumed() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(CHUNKED + chunk(b"a"))
    line.connection.pause()
    line.connection.pause()
    line.transport.arrive(chunk(b"b"))
    assert answered.body == b"a"
    line.connection.resume()
    line.connection.resume()
    await turns()
    assert answered.body == b"ab"


async def test_a_pause_does_not_outlive_its_exchange() -> None:
    line = Line()

    class Full(Answered):
        def body_received(self, data: bytes) -> None:
            super().body_received(data)
            line.connection.pause()

    line.connection.send(REQUEST, Full())
    line.transport.arrive(HI)
    assert line.connection.usable
    assert line.transport.reading
    answered = asked(line)
    line.transport.arrive(HI)
    assert answered.ends == [None]


async def test_pausing_a_closed_connection_is_harmless() -> None:
    line = Line()
    line.connection.close()
    line.connection.pause()
    line.connection.resume()
    line.connection.finish()
    await turns()
    line.connection.pause()
    line.connection.resume()
    assert line.lost == 1


async def test_finishing_lets_the_framing_end_so_that_the_connection_is_kept() -> None:
    line = Line()
    answered = asked(line)
    line.transport.arrive(CHUNKED + chunk(b"all"))
    line.connection.finish()
    assert not line.connection.usable
    line.transport.arrive(chunk(b"unheard"), b"0\r\n\r\n")
    assert (answered.body, answered.ends) == (b"all", [])
    assert (line.idle, line.connection.usable) == (1, True)
    again = asked(line)
    line.transport.arrive(HI)
    assert again.ends == [None]


async def test_finishing_a_paused_answer_reads_its_rest() -> None:
    line = Line()
    asked(line)
    line.transport.arrive(CHUNKED + chunk(b"all"))
    line.connection.pause()
    line.connection.finish()
    line.transport.arrive(b"0\r\n\r\n")
    await turns()
    assert line.idle == 1


async def test_finishing_gives_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, line = Clock(monkeypatch), Line()
    asked(line)
    line.transport.arrive(CHUNKED + chunk(b"all"))
    line.connection.finish()
    await clock.advance(FINISH_WITHIN_S * 0.9)
    assert not line.transport.closed
    await clock.advance(FINISH_WITHIN_S * 0.2)
    assert (line.transport.closed, line.lost) == (True, 1)


async def test_a_finish_in_time_closes_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, line = Clock(monkeypatch), Line()
    asked(line)
    line.transport.arrive(CHUNKED + chunk(b"all"))
    line.connection.finish()
    line.transport.arrive(b"0\r\n\r\n")
    answered = asked(line)
    await clock.advance(FINISH_WITHIN_S * 2)
    line.transport.arrive(HI)
    assert answered.ends == [None]


async def test_a_receiver_that_fails_loses_its_connection_and_hears_of_it_once() -> None:
    """Over a socket: asyncio takes a protocol's exception for the end of the connection."""
    caught: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))

    class Failing(Answered):
        def body_received(self, data: bytes) -> None:
            raise LookupError("a bug")

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, chunk(b"a"))
        await peer.closed()

    async with connected(script) as (connection, lost):
        answered = Failing()
        connection.send(REQUEST, answered)
        await lost.wait()
        assert [type(error) for error in answered.ends] == [UpstreamTruncated]
        assert [type(context["exception"]) for context in caught] == [LookupError]


# ---- over a socket ----


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[tuple[UpstreamConnection, asyncio.Event]]:
    """A connection to a scripted upstream, and the event of its loss."""
    lost = asyncio.Event()
    async with scripted_upstream(script) as upstream:
        host, port = upstream.url.removeprefix("http://").split(":")
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: UpstreamConnection(lambda _: None, lambda _: lost.set()), host, int(port)
        )
        try:
            yield connection, lost
        finally:
            connection.close()
            await lost.wait()


async def test_a_request_in_pieces_is_one_request() -> None:
    line = Line()
    line.connection.send([REQUEST[:9], memoryview(REQUEST)[9:40], memoryview(REQUEST)[40:]], Answered())
    assert line.transport.sent == REQUEST


async def test_a_request_in_pieces_reaches_a_slow_server_whole() -> None:
    long = bytes(range(256)) * (1 << 14)
    bodies = []

    async def script(peer: Peer) -> None:
        for _ in range(2):
            await turns(20)
            bodies.append((await peer.request()).body)
            await peer.send(HI)

    async with connected(script) as (connection, _):
        for _ in range(2):  # kept alive: the next one follows on the same connection
            answered = Answered()
            head = b"POST / HTTP/1.1\r\nHost: gpu\r\nContent-Length: %d\r\n\r\n" % len(long)
            connection.send([head, memoryview(long)[:5], memoryview(long)[5:]], answered)
            await answered.over.wait()
            assert answered.ends == [None]
    assert bodies == [long, long]


async def test_answers_over_a_socket_are_kept_alive() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*(HI[at : at + 1] for at in range(len(HI))))
        await peer.request()
        await peer.send(answer(404, b"{}"))
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nuntil close")

    async with connected(script) as (connection, lost):
        seen = []
        for _ in range(3):
            awaited = Answered()
            connection.send(REQUEST, awaited)
            await awaited.over.wait()
            assert awaited.head is not None
            seen.append((awaited.head.status, awaited.body, awaited.ends))
        await lost.wait()
    assert seen == [(200, b"hi", [None]), (404, b"{}", [None]), (200, b"until close", [None])]


async def test_a_reset_over_a_socket_is_a_loss() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, chunk(b"a"))
        peer.reset()

    async with connected(script) as (connection, lost):
        awaited = Answered()
        connection.send(REQUEST, awaited)
        await lost.wait()
        assert [type(error) for error in awaited.ends] == [UpstreamTruncated]


async def test_closing_reaches_the_server_at_once() -> None:
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.closed()
        seen.set()

    async with connected(script) as (connection, _):
        connection.send(REQUEST, Answered())
        await turns()
        connection.close()
        async with asyncio.timeout(0.1):
            await seen.wait()
