"""The chunked coding: the same body however it is cut, what llhttp takes and no more, mistakes found in their place."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.chunked import ChunkedBody, ChunkingError, known_size

BODY = b"4\r\nWiki\r\n6;name=value\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nX-Trailer: kept to itself\r\n\r\n"
PLAIN = b"Wikipedia in \r\n\r\nchunks."


def read(*reads: bytes) -> tuple[bytes, bool]:
    """What comes out of these reads, and whether it was all."""
    body = ChunkedBody()
    pieces: list[bytes] = []
    for data in reads:
        body.feed(data, pieces)
    return b"".join(pieces), body.ended


@pytest.mark.parametrize("cut", range(len(BODY) + 1))
def test_a_body_cut_anywhere_is_the_same(cut: int) -> None:
    assert read(BODY[:cut], BODY[cut:]) == (PLAIN, True)


def test_a_body_comes_byte_by_byte() -> None:
    assert read(*(bytes([byte]) for byte in BODY)) == (PLAIN, True)


def test_a_body_without_its_last_chunk_has_not_ended() -> None:
    assert read(BODY[: BODY.index(b"0\r\nX-")]) == (PLAIN, False)


def test_no_byte_is_between_chunks_but_the_first_of_one() -> None:
    body = ChunkedBody()
    between = []
    for byte in b"2\r\nab\r\n3\r\nabc\r\n":
        between.append(body.between_chunks)
        body.feed(bytes([byte]), [])
    assert [at for at, is_between in enumerate(between) if is_between] == [0, 7]
    assert body.between_chunks


def test_trailers_are_not_between_chunks() -> None:
    body = ChunkedBody()
    body.feed(b"0\r\n", [])
    assert not body.between_chunks
    assert not body.ended


def test_a_size_is_known_once_it_was_seen() -> None:
    assert known_size(b"fed1") is None
    ChunkedBody().feed(b"fed1\r\n", [])
    assert known_size(b"fed1") == 0xFED1


@pytest.mark.parametrize("line", [b"0", b"", b"fed2;x=1", b"0xfed2", b"fed2 "])
def test_only_plain_sizes_of_something_are_ever_known(line: bytes) -> None:
    with suppress(ChunkingError):
        ChunkedBody().feed(line + b"\r\n", [])
    assert known_size(line) is None


@pytest.mark.parametrize(
    "mistake",
    [
        b"\r\n",
        b"g\r\n",
        b"0x4\r\n",
        b"-4\r\n",
        b"+4\r\n",
        b"4_0\r\n",
        b" 4\r\n",
        b"4 \r\n",
        b"4 ;a\r\n",
        b"4;a\0b\r\n",
        b"4\n",
        b"4\r4\n",
        b"1" * 16 + b"\r\n",
        b"4\r\nWiki4\r\n",
        b"4\r\nWiki\n",
        b"4\r\nWiki\r4",
        b"0\r\n\r\nmore",
        b"0\r\nno header\r\n\r\n",
        b"0\r\nX: a\r\n folded\r\n\r\n",
        b"0\r\nX: a\0b\r\n\r\n",
        b"0\r\nX : a\r\n\r\n",
        b"0\r\n\n",
    ],
)
def test_a_mistake_is_found_and_what_came_before_it_is_kept(mistake: bytes) -> None:
    pieces: list[bytes] = []
    body = ChunkedBody()
    with pytest.raises(ChunkingError):
        body.feed(b"3\r\nabc\r\n" + mistake, pieces)
    assert pieces[0] == b"abc"


class Heard:
    """llhttp's reading of the same bytes."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.ended = True


def by_llhttp(data: bytes) -> tuple[bytes, bool]:
    heard = Heard()
    parser = httptools.HttpResponseParser(heard)
    parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.feed_data(data)
    return heard.body, heard.ended


def coded(chunks: list[bytes], *, upper: bool) -> bytes:
    sizes = (b"%X" if upper else b"%x",) * len(chunks)
    return b"".join(size % len(data) + b"\r\n" + data + b"\r\n" for size, data in zip(sizes, chunks, strict=True)) + (
        b"0\r\n\r\n"
    )


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.booleans(), st.lists(st.integers(0, 2500)))
def test_what_is_well_coded_reads_as_llhttp_reads_it(chunks: list[bytes], upper: bool, cuts: list[int]) -> None:
    data = coded(chunks, upper=upper)
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    reads = [data[start:end] for start, end in pairwise(edges)]
    assert read(*reads) == by_llhttp(data) == (b"".join(chunks), True)


TOKENS = st.sampled_from([b"4", b"a", b"0", b"\r\n", b"\n", b"\r", b";", b" ", b"x", b":", b"\0", b"0\r\n\r\n"])


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=3), st.integers(0, 100), st.lists(TOKENS, min_size=1))
def test_no_whole_body_is_taken_that_llhttp_refuses(chunks: list[bytes], at: int, tokens: list[bytes]) -> None:
    data = coded(chunks, upper=False)
    data = data[:at] + b"".join(tokens) + data[at:]
    try:
        body, ended = read(data)
    except ChunkingError:
        return
    if ended:
        assert (body, ended) == by_llhttp(data)
