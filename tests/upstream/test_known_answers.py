"""Heads of answers that come again: the same without a parser as with one."""

from __future__ import annotations

import httptools
import pytest

from proxy.upstream import connection
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.known_answers import KnownAnswers
from tests.support.memory_line import Answered, Line, turns
from tests.support.upstream import chunk

REQUEST = b"POST /v1/x HTTP/1.1\r\nHost: gpu\r\nContent-Length: 0\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: %d\r\nX-A: b\r\n\r\n%b"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MEANING = AnswerHead(200, (("Server", "s"),))


@pytest.fixture(autouse=True)
def _knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_known_answers", KnownAnswers())


def answered(line: Line, *reads: bytes) -> Answered:
    receiver = Answered()
    line.connection.send(REQUEST, receiver)
    line.transport.arrive(*reads)
    return receiver


def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(httptools, "HttpResponseParser", never)


@pytest.mark.parametrize(
    ("first", "again", "body", "kept"),
    [
        (SIZED % (2, b"hi"), SIZED % (11, b"hello world"), b"hello world", True),
        (SIZED % (2, b"hi"), SIZED % (0, b""), b"", True),
        (CHUNKED + chunk(b"a") + b"0\r\n\r\n", CHUNKED + chunk(b"bc") + b"0\r\nX: y\r\n\r\n", b"bc", True),
        (CHUNKED + chunk(b"a") + b"0\r\n\r\n", CHUNKED, b"", None),
        (
            b"HTTP/1.1 500 No\r\nContent-Length: 1\r\nConnection: close\r\n\r\na",
            b"HTTP/1.1 500 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
            b"ab",
            False,
        ),
    ],
)
async def test_a_known_head_means_what_it_meant(
    first: bytes, again: bytes, body: bytes, kept: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = answered(Line(), first)
    no_parser(monkeypatch)
    line = Line()
    got = answered(line, again)
    assert got.head == learnt.head
    assert got.body == body
    assert got.ends == ([] if kept is None else [None])
    if kept is not None:
        assert (line.idle, line.connection.usable) == (int(kept), kept)


async def test_chunks_behind_a_known_head_come_in_any_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    answered(Line(), CHUNKED + chunk(b"a") + b"0\r\n\r\n")
    no_parser(monkeypatch)
    rest = chunk(b"hel") + chunk(b"lo") + b"0\r\n\r\n"
    for cut in range(len(rest) + 1):
        got = answered(Line(), *(read for read in (CHUNKED + rest[:cut], rest[cut:]) if read))
        assert (got.body, got.ends) == (b"hello", [None]), cut


async def test_a_known_head_whose_body_comes_later_is_parsed() -> None:
    answered(Line(), SIZED % (2, b"hi"))
    line = Line()
    got = answered(line, SIZED % (5, b"he"), b"llo")
    assert (got.body, got.ends, line.idle) == (b"hello", [None], 1)


@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_bytes_behind_the_body_break_it_as_ever(more: bytes) -> None:
    first = Line()
    answered(first, SIZED % (2, b"hi"))
    line = Line()
    got = answered(line, SIZED % (2, b"hi") + more)
    await turns()
    assert line.transport.closed
    assert len(got.ends) == 1
    assert got.ends[0] is not None


async def test_a_kept_connection_takes_known_and_new_heads_in_turns() -> None:
    line = Line()
    for read in [
        SIZED % (2, b"hi"),
        SIZED % (3, b"you"),
        CHUNKED + b"0\r\n\r\n",
        SIZED % (1, b"a"),
        CHUNKED + b"0\r\n\r\n",
    ]:
        got = answered(line, read)
        assert got.ends == [None]
    assert line.idle == 5


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED % (2, b"hi"),  # another head in front of it
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",  # a length without a body
        b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nhi",  # written so that only a parser finds it
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 5000 + b"\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
async def test_what_may_mean_something_else_the_next_time_is_not_learnt(first: bytes) -> None:
    answered(Line(), first)
    assert connection._known_answers.find(first) is None


async def test_a_head_that_is_refused_is_refused_again() -> None:
    both = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(2):
        got = answered(Line(), both)
        assert got.ends[0] is not None


def test_any_other_byte_is_another_head() -> None:
    known = KnownAnswers()
    data = SIZED % (2, b"hi")
    known.learn(data, len(data) - 2, MEANING, keep_alive=True, chunked=False)
    assert known.find(data) is not None
    digits = data.index(b": 2") + 2
    for at in range(len(data) - 2):
        other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert (known.find(other) is None) == (at != digits or other[digits] != ord("2")), at


def test_heads_that_never_come_again_do_not_pile_up() -> None:
    known = KnownAnswers()
    for number in range(10_000):
        data = b"HTTP/1.1 200 OK\r\nX-Request-Id: %d\r\nContent-Length: 0\r\n\r\n" % number
        known.learn(data, len(data), MEANING, keep_alive=True, chunked=False)
    assert len(known._sized) <= 128
    assert known.find(data) is not None
