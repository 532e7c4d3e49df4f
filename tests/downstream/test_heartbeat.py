"""A client that says nothing is asked, and dropped when it does not answer: on a clock that only moves when told."""

from __future__ import annotations

import asyncio

import pytest

from proxy.downstream.heartbeat import Heartbeat
from tests.support.memory_line import Clock, MemoryTransport

EVERY_S = 20.0
PING = b"\x89\x00"


class Client:
    """A silent client behind a transport in memory, and the heartbeat that watches over it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every_s: float | None = EVERY_S) -> None:
        self.clock = Clock(monkeypatch)
        self.transport = MemoryTransport(asyncio.Protocol())
        self.loop = asyncio.get_running_loop()
        self.heartbeat = Heartbeat(self.loop, self.transport, every_s)
        self.heartbeat.begin()

    async def after(self, seconds: float) -> tuple[bytes, bool]:
        """What has been sent since, and whether it is gone."""
        before = len(self.transport.sent)
        await self.clock.advance(seconds)
        return self.transport.sent[before:], self.transport.closed

    def speaks(self) -> None:
        self.heartbeat.heard(self.loop.time())


async def test_a_silent_client_is_pinged_and_after_half_of_that_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch)
    assert await client.after(EVERY_S - 0.1) == (b"", False)
    assert await client.after(0.2) == (PING, False)
    assert await client.after(EVERY_S / 2 - 0.3) == (b"", False)
    assert await client.after(0.4) == (b"", True)


async def test_one_that_answers_is_asked_again_when_it_has_been_silent_for_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client(monkeypatch)
    for _ in range(3):
        assert await client.after(EVERY_S) == (PING, False)
        client.speaks()
        assert await client.after(EVERY_S / 2) == (b"", False)
        client.speaks()


async def test_one_that_speaks_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch)
    for _ in range(10):
        assert await client.after(EVERY_S - 1) == (b"", False)
        client.speaks()


async def test_one_that_is_not_listened_to_is_not_asked_until_it_is_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch)
    await client.after(EVERY_S)
    client.heartbeat.stop()
    assert await client.after(10 * EVERY_S) == (b"", False)
    client.heartbeat.begin()
    assert await client.after(EVERY_S - 0.1) == (b"", False)
    assert await client.after(0.2) == (PING, False)


async def test_where_no_pings_are_wanted_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, None)
    client.speaks()
    assert await client.after(1000 * EVERY_S) == (b"", False)
    client.heartbeat.stop()
