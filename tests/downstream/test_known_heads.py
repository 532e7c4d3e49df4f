"""Known heads: which of them are the same, and which are never learnt."""

from __future__ import annotations

import pytest
from aiohttp import HttpVersion11
from aiohttp.http_parser import RawRequestMessage
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.downstream import known_heads
from proxy.downstream.known_heads import KnownHead, KnownHeads
from proxy.wire.sized_heads import sized_head

HOME, ELSEWHERE = "127.0.0.1", "192.0.2.7"
MAX_BODY_BYTES = 1000


def request(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Authorization: Bearer k7", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def message(data: bytes) -> RawRequestMessage:
    """What a parser makes of these bytes."""
    line, *lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    raw = tuple((name, value.strip()) for name, _, value in (each.partition(b":") for each in lines))
    method, target, _ = line.decode().split(" ")
    headers = CIMultiDictProxy(CIMultiDict([(name.decode(), value.decode()) for name, value in raw]))
    return RawRequestMessage(method, target, HttpVersion11, headers, raw, False, None, False, False, URL(target))


def learnt(*requests: bytes, peer: str = HOME) -> KnownHeads:
    """Knows the heads of these; their visitor is what they say."""
    heads = KnownHeads(MAX_BODY_BYTES)
    for data in requests:
        heads.learn(peer, data, message(data), data)
    return heads


def found(heads: KnownHeads, data: bytes, peer: str = HOME) -> KnownHead | None:
    head = sized_head(data)
    return None if head is None else heads.find(peer, head)


FIRST = request(b"{}")


def test_nothing_is_known_at_first() -> None:
    assert found(KnownHeads(MAX_BODY_BYTES), FIRST) is None


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 999, b"x" * MAX_BODY_BYTES])
def test_a_head_that_comes_again_is_known_whatever_its_bodys_length(body: bytes) -> None:
    known = found(learnt(FIRST), request(body))
    assert known is not None
    assert known.visitor == FIRST
    assert known.message.raw_headers == message(FIRST).raw_headers


def test_a_body_that_is_too_large_is_for_others_to_refuse() -> None:
    assert found(learnt(FIRST), request(b"x" * (MAX_BODY_BYTES + 1))) is None


def test_a_head_learnt_with_a_body_that_is_too_large_is_known_with_a_smaller_one() -> None:
    assert found(learnt(request(b"x" * (MAX_BODY_BYTES + 1))), FIRST) is not None


def test_another_peer_is_not_known_by_the_same_head() -> None:
    heads = learnt(FIRST)
    assert found(heads, FIRST, ELSEWHERE) is None
    heads.learn(ELSEWHERE, FIRST, message(FIRST), "elsewhere")
    known = [found(heads, FIRST, peer) for peer in (HOME, ELSEWHERE)]
    assert [each and each.visitor for each in known] == [FIRST, "elsewhere"]


OTHERS = {
    "path": request(b"{}", path="/v1/completions"),
    "query": request(b"{}", path="/v1/chat/completions?a=1"),
    "another key": FIRST.replace(b"k7", b"k8"),
    "a digit more": FIRST.replace(b"k7", b"k77"),
    "a digit less": FIRST.replace(b"k7", b"k"),
    "no key": FIRST.replace(b"Authorization: Bearer k7\r\n", b""),
    "a header more": request(b"{}", "X-A: 1"),
    "another case": FIRST.replace(b"Host", b"host"),
    "the length's case": FIRST.replace(b"Content-Length", b"content-length"),
    "the length's place": FIRST.replace(b"\r\nContent-Length: 2", b"").replace(
        b"\r\nHost", b"\r\nContent-Length: 2\r\nHost"
    ),
    "a second length": FIRST.replace(b"\r\nHost", b"\r\nContent-Length: 2\r\nHost"),
    "two lengths": FIRST.replace(b"th: 2", b"th: 2\r\nContent-Length: 2"),
    "chunked too": FIRST.replace(b"\r\nHost", b"\r\nTransfer-Encoding: chunked\r\nHost"),
    "an empty line in front": b"\r\n" + FIRST,
    "HTTP/1.0": FIRST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "bare LF": FIRST.replace(b"\r\nHost", b"\nHost"),
    "not whole": FIRST[:-4],
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_head_that_differs_in_anything_else_is_not_known(case: str) -> None:
    assert found(learnt(FIRST), FIRST) is not None
    assert found(learnt(FIRST), OTHERS[case]) is None


LENGTH_AT = FIRST.index(b"Content-Length: ") + len(b"Content-Length: ")


@given(st.integers(0, len(FIRST) - 3), st.integers(0, 255))
def test_no_byte_but_the_lengths_digits_may_change(at: int, byte: int) -> None:
    changed = FIRST[:at] + bytes([byte]) + FIRST[at + 1 :]
    same = changed == FIRST or (at == LENGTH_AT and chr(byte) in "0123456789")
    assert (found(learnt(FIRST), changed) is not None) == same


@given(st.integers(0, len(FIRST) - 3), st.binary(min_size=1, max_size=4))
def test_nothing_may_be_put_in(at: int, piece: bytes) -> None:
    changed = FIRST[:at] + piece + FIRST[at:]
    known = found(learnt(FIRST), changed) is not None
    if known:  # the length has more digits, or what was put in stands behind the head
        assert sized_head(changed) == sized_head(FIRST) or piece.isdigit()
    if LENGTH_AT <= at <= LENGTH_AT + 1 and piece.isdigit():
        assert known == (int(changed[LENGTH_AT:].partition(b"\r\n")[0]) <= MAX_BODY_BYTES)


NEVER = [
    "Connection: close",
    "connection: keep-alive",
    "CONNECTION: x",
    "Content-Encoding: identity",
    "content-encoding: gzip",
    "Expect: 100-continue",
    "EXPECT: x",
    "Transfer-Encoding: identity",
    "transfer-encoding: chunked",
    "Upgrade: websocket",
    "upgrade: h2c",
]


@pytest.mark.parametrize("header", NEVER)
def test_what_is_said_of_one_request_or_of_the_connection_is_never_learnt(header: str) -> None:
    assert found(learnt(request(b"{}", header)), request(b"{}", header)) is None


@pytest.mark.parametrize("header", ["X-Connection: close", "Keep-Alive: 5", "Accept-Encoding: gzip", "Expected: x"])
def test_headers_that_only_look_alike_are_learnt(header: str) -> None:
    assert found(learnt(request(b"{}", header)), request(b"{}", header)) is not None


@pytest.mark.parametrize("data", [FIRST[:-4], b"GET / HTTP/1.1\r\n\r\n"], ids=["not whole", "no length"])
def test_what_is_no_sized_head_is_not_learnt(data: bytes) -> None:
    heads = KnownHeads(MAX_BODY_BYTES)
    heads.learn(HOME, data, message(FIRST), None)
    assert heads._known == {}


def test_a_long_head_is_not_kept() -> None:
    room = known_heads._MOST_BYTES - len(request(b"", "X: "))
    assert found(learnt(long := request(b"", "X: " + "x" * room)), long) is not None
    assert found(learnt(long := request(b"", "X: " + "x" * (room + 1))), long) is None


def test_heads_that_are_never_the_same_take_bounded_room() -> None:
    heads = learnt(*(request(b"{}", f"X-Id: {number}") for number in range(3 * known_heads._MOST + 5)))
    assert len(heads._known) == 5
    assert found(heads, request(b"{}", f"X-Id: {3 * known_heads._MOST + 4}")) is not None
    assert found(heads, request(b"{}", "X-Id: 0")) is None


def test_a_head_learnt_again_means_what_was_said_last() -> None:
    heads = learnt(FIRST)
    heads.learn(HOME, FIRST, message(FIRST), "later")
    known = found(heads, FIRST)
    assert known is not None
    assert known.visitor == "later"
