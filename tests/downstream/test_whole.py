"""A stream kept until it is whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from proxy.downstream.whole import Whole, whole_body
from proxy.errors import UpstreamInvalid, UpstreamTruncated
from proxy.protocols.endpoints import for_path
from proxy.relay import Answer
from proxy.request import ProxyRequest, RequestBody
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


def answered(body: bytes | None, *, events: bool = False) -> Answer:
    parsed = RequestBody.parse(b'{"model":"m"}')
    request = ProxyRequest("/v1/chat/completions", "", (), (), parsed, "r")
    watcher = for_path(request.path).watcher(parsed)
    return Answer(request, 200, (), body, events, Stream(), watcher, None, lambda: None)


async def test_a_body_is_whole_however_it_comes() -> None:
    assert await whole_body(answered(b"{}"), 0) == b"{}"
    flowing = answered(None)
    flowing.stream.publish(piece(b"{"))
    flowing.stream.publish(piece(b"}"))
    flowing.stream.end()
    assert await whole_body(flowing, 100) == b"{}"


async def test_an_event_stream_has_none() -> None:
    assert await whole_body(answered(None, events=True), 100) is None


async def test_a_body_that_breaks_off_or_is_too_long_is_an_error() -> None:
    broken = answered(None)
    broken.stream.end(UpstreamTruncated("cut"))
    with pytest.raises(UpstreamTruncated):
        await whole_body(broken, 100)
    long = replace(broken, stream=Stream())
    long.stream.publish(piece(b"xxx"))
    with pytest.raises(UpstreamInvalid):
        await whole_body(long, 2)
