"""A wait that a stream's interruption ends."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Unavailable
from proxy.streams.stream import Stream
from proxy.upstream.waiting import Waiting

DRAINING = Unavailable("shutting down", code="draining")


async def test_a_wait_lasts_until_it_is_released() -> None:
    waiting = Waiting(Stream())
    asyncio.get_running_loop().call_soon(waiting.release)
    assert await waiting.last(None) is True


async def test_a_wait_that_was_released_before_it_began_is_over() -> None:
    waiting = Waiting(Stream())
    waiting.release()
    waiting.release()
    assert await waiting.last(5.0) is True


async def test_a_wait_lasts_no_longer_than_it_may() -> None:
    assert await Waiting(Stream()).last(0.001) is False


async def test_a_wait_can_go_on_after_a_while() -> None:
    waiting = Waiting(Stream())
    assert await waiting.last(0.001) is False
    assert await waiting.last(0.001) is False
    asyncio.get_running_loop().call_soon(waiting.release)
    assert await waiting.last(5.0) is True


async def test_an_interruption_ends_the_wait_and_is_raised() -> None:
    stream = Stream()
    waiting = Waiting(stream)
    asyncio.get_running_loop().call_soon(stream.interrupt, DRAINING)
    with pytest.raises(Unavailable) as raised:
        await waiting.last(None)
    assert raised.value is DRAINING
    assert stream.ended


async def test_nobody_waits_for_a_stream_that_was_interrupted() -> None:
    stream = Stream()
    stream.interrupt(DRAINING)
    with pytest.raises(Unavailable) as raised:
        Waiting(stream)
    assert raised.value is DRAINING


async def test_an_interruption_after_the_wait_is_for_whoever_comes_next() -> None:
    stream = Stream()
    assert await Waiting(stream).last(0.001) is False
    stream.interrupt(DRAINING)
    with pytest.raises(Unavailable):
        Waiting(stream)


async def test_a_wait_can_be_given_up() -> None:
    stream = Stream()
    task = asyncio.create_task(Waiting(stream).last(None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stream.cancel()
