"""Deadlines under a clock that stands still: which limit counts when, and that one timer is enough."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import FirstTokenTimeout, UpstreamError, UpstreamIdle, UpstreamTimeout
from proxy.routing.table import Timeouts
from proxy.upstream.deadlines import READ_WITHIN_S, Deadlines
from tests.support.memory_line import Clock


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Watched:
    def __init__(self, *, first: float | None = None, idle: float | None = None, total: float | None = None) -> None:
        self.errors: list[UpstreamError] = []
        self.last_read = 0.0
        self.deadlines = Deadlines()
        self.deadlines.start(Timeouts(None, first, idle, total), self, self.errors.append)

    @property
    def kinds(self) -> list[type]:
        return [type(error) for error in self.errors]

    def read(self) -> None:
        self.last_read = asyncio.get_running_loop().time()


async def test_silence_before_the_first_word_is_a_first_token_timeout(clock: Clock) -> None:
    watched = Watched(first=2.0, idle=0.5)
    await clock.advance(1.9)
    assert watched.kinds == []
    await clock.advance(0.2)
    assert watched.kinds == [FirstTokenTimeout]
    assert "timeouts.first_token (2 s)" in watched.errors[0].message


async def test_silence_after_the_first_word_is_idle(clock: Clock) -> None:
    watched = Watched(first=1.0, idle=3.0)
    watched.deadlines.spoken()
    await clock.advance(2.9)
    assert watched.kinds == []
    await clock.advance(0.2)
    assert watched.kinds == [UpstreamIdle]


async def test_every_read_puts_silence_off(clock: Clock) -> None:
    watched = Watched(idle=1.0)
    watched.deadlines.spoken()
    for _ in range(5):
        await clock.advance(0.9)
        watched.read()
    assert watched.kinds == []
    await clock.advance(1.1)
    assert watched.kinds == [UpstreamIdle]


async def test_the_whole_answer_has_its_own_limit(clock: Clock) -> None:
    watched = Watched(idle=1.0, total=2.5)
    watched.deadlines.spoken()
    for _ in range(3):
        await clock.advance(0.9)
        watched.read()
    assert watched.kinds == [UpstreamTimeout]


async def test_a_pause_is_no_silence(clock: Clock) -> None:
    watched = Watched(idle=1.0)
    watched.deadlines.spoken()
    watched.deadlines.pause()
    await clock.advance(30.0)
    watched.deadlines.resume()
    await clock.advance(0.9)
    assert watched.kinds == []
    await clock.advance(0.2)
    assert watched.kinds == [UpstreamIdle]


async def test_without_limits_nothing_ever_expires(clock: Clock) -> None:
    watched = Watched()
    watched.deadlines.spoken()
    await clock.advance(1e6)
    assert watched.kinds == []


async def test_nothing_expires_once_stopped(clock: Clock) -> None:
    watched = Watched(first=1.0, idle=1.0, total=1.0)
    watched.deadlines.stop()
    await clock.advance(10.0)
    assert watched.kinds == []


async def test_the_next_exchange_has_limits_of_its_own(clock: Clock) -> None:
    watched = Watched(first=10.0)
    watched.deadlines.stop()
    await clock.advance(9.0)
    watched.deadlines.start(Timeouts(None, 2.0, None, None), watched, watched.errors.append)
    await clock.advance(1.5)
    assert watched.kinds == []
    await clock.advance(1.0)
    assert watched.kinds == [FirstTokenTimeout]
    assert "(2 s)" in watched.errors[0].message


async def test_a_timer_left_by_the_exchange_before_serves_the_next_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(first=10.0)
    watched.deadlines.stop()
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", None)
    watched.deadlines.start(Timeouts(None, 10.0, None, None), watched, watched.errors.append)
    monkeypatch.undo()


async def test_a_timer_that_comes_too_early_for_the_next_exchange_is_set_again(clock: Clock) -> None:
    watched = Watched(first=10.0)
    watched.deadlines.stop()
    await clock.advance(8.0)
    watched.deadlines.start(Timeouts(None, 10.0, None, None), watched, watched.errors.append)
    await clock.advance(9.0)
    assert watched.kinds == []
    await clock.advance(1.5)
    assert watched.kinds == [FirstTokenTimeout]


async def test_a_closed_connection_keeps_no_timer(clock: Clock) -> None:
    watched = Watched(first=10.0)
    watched.deadlines.close()
    await clock.advance(20.0)
    assert watched.kinds == []


async def test_what_came_while_the_process_stood_still_is_read_before_anything_expires(clock: Clock) -> None:
    watched = Watched(idle=3.0)
    watched.deadlines.spoken()
    await clock.advance(60.0)  # the laptop slept
    assert watched.kinds == []
    watched.read()
    await clock.advance(READ_WITHIN_S + 0.01)
    assert watched.kinds == []
    await clock.advance(3.0)
    assert watched.kinds == [UpstreamIdle]


async def test_nothing_came_while_the_process_stood_still(clock: Clock) -> None:
    watched = Watched(idle=3.0)
    watched.deadlines.spoken()
    await clock.advance(60.0)
    await clock.advance(READ_WITHIN_S + 0.01)
    assert watched.kinds == [UpstreamIdle]
