"""A stream kept until it is whole."""

from __future__ import annotations

import asyncio

from proxy.downstream.whole import Whole
from proxy.errors import UpstreamInvalid, UpstreamTruncated
from proxy.streams.stream import Stream
from proxy.wire.sse import Event


def piece(data: bytes) -> list[Event]:
    return [Event(data, data, data)]


async def test_what_came_in_pieces_is_kept_in_order() -> None:
    stream, whole = Stream(), Whole(100)
    stream.publish(piece(b"one"))
    stream.attach(whole)
    stream.publish(piece(b"two"))
    assert not whole.finished.done()
    stream.end()
    assert await whole.finished is None
    assert b"".join(whole.pieces) == b"onetwo"


async def test_how_it_broke_off_is_kept_too() -> None:
    stream, whole = Stream(), Whole(100)
    stream.attach(whole)
    error = UpstreamTruncated("cut")
    stream.end(error)
    assert await whole.finished is error


async def test_more_than_there_is_room_for_is_an_error_and_pauses_the_source() -> None:
    whole = Whole(5)
    assert not whole.write(piece(b"12345"))
    assert whole.write(piece(b"6"))
    error = await whole.finished
    assert isinstance(error, UpstreamInvalid)
    whole.end(None)  # what comes afterwards changes nothing
    await asyncio.sleep(0)
    assert whole.finished.result() is error
