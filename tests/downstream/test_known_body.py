"""The body of a request with a known head: of exactly its length, in any pieces, and how long it may pause."""

from __future__ import annotations

import asyncio

import pytest

from proxy.downstream.known_body import KnownBody
from tests.support.memory_line import Clock, cuts, turns

TEXT = b'{"model":"m"}'


def body(length: int = len(TEXT)) -> KnownBody:
    return KnownBody(asyncio.get_running_loop(), length)


@pytest.mark.parametrize("pieces", cuts(TEXT), ids=lambda pieces: "-".join(str(len(piece)) for piece in pieces))
async def test_a_body_is_whole_however_it_comes(pieces: tuple[bytes, ...]) -> None:
    coming = body()
    reading = asyncio.ensure_future(coming.whole(None))
    for piece in pieces:
        await turns(2)
        assert not reading.done()
        assert not coming.is_eof()
        assert coming.feed(piece) == b""
    assert coming.is_eof()
    assert await reading == TEXT


async def test_what_came_before_anybody_waited_is_there_at_once() -> None:
    coming = body()
    assert coming.feed(TEXT[:5]) == b""
    assert coming.feed(TEXT[5:]) == b""
    assert await coming.whole(0.0) == TEXT


async def test_what_lies_behind_the_end_is_given_back() -> None:
    coming = body()
    assert coming.feed(TEXT[:5]) == b""
    assert coming.feed(TEXT[5:] + b"POST ") == b"POST "
    assert coming.feed(b"/ HTTP/1.1") == b"/ HTTP/1.1"
    assert await coming.whole(None) == TEXT


async def test_a_body_of_no_bytes_is_whole_at_once() -> None:
    coming = body(0)
    assert coming.is_eof()
    assert coming.feed(b"POST ") == b"POST "
    assert await coming.whole(0.0) == b""


async def test_each_piece_of_a_body_buys_the_time_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    coming = body()
    reading = asyncio.ensure_future(coming.whole(30.0))
    await turns()
    for at in range(len(TEXT) - 1):
        await clock.advance(29.0)
        assert coming.feed(TEXT[at : at + 1]) == b""
        await turns()
    await clock.advance(29.0)
    assert not reading.done()
    await clock.advance(2.0)
    with pytest.raises(TimeoutError):
        await reading


async def test_a_body_that_was_given_up_can_still_be_heard_out() -> None:
    coming = body()
    coming.feed(TEXT[:5])
    with pytest.raises(TimeoutError):
        await coming.whole(0.0)
    assert coming.feed(TEXT[5:]) == b""
    assert await coming.whole(None) == TEXT


async def test_a_body_may_pause_for_ever_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    coming = body()
    reading = asyncio.ensure_future(coming.whole(None))
    await turns()
    await clock.advance(1e6)
    assert not reading.done()
    coming.feed(TEXT)
    assert await reading == TEXT


async def test_nobody_waits_any_more_for_a_reader_that_was_cancelled() -> None:
    coming = body()
    reading = asyncio.ensure_future(coming.whole(None))
    await turns()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert coming.feed(TEXT + b"more") == b"more"
