"""Thousands of sockets that say nothing, or half a head and no more: whoever asks for something is answered as ever,
and the gateway closes them all in time."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from proxy.downstream.client_socket import KEEPALIVE_S
from tests.support.census import count, descriptors
from tests.support.crowd import crowd
from tests.support.dialects import DIALECTS, Place, ask
from tests.support.gateway import running_gateway
from tests.support.memory_line import Clock
from tests.support.model_words import CHAT, MESSAGES, RESPONSES, well
from tests.support.open_files import allow_many_files
from tests.support.served import one_route, served
from tests.support.upstream import scripted_upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

MANY = 10_000
AT_LEAST = 2_000
"""Fewer are no crowd: then the system has to allow more files."""
HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le"
EVERY = 2
"""One in so many has begun a head."""
HEADERS_S = 7.0
SOME = 300


MODELS = {CHAT: "chat", MESSAGES: "messages", RESPONSES: "responses"}
"""The route to the model server that speaks these words."""


async def all_are_answered(place: Place) -> None:
    for dialect in DIALECTS:
        seen = await ask(place, dialect, MODELS[dialect.words])
        assert (dialect.name, "".join(seen.said), seen.errors) == (dialect.name, "well", [])


async def test_ten_thousand_idle_sockets_cost_the_others_nothing(tmp_path: Path) -> None:
    """Both ends of them are descriptors: these are ours, the others are another process's."""
    many = min(MANY, allow_many_files() * 3 // 4)
    assert many >= AT_LEAST
    async with AsyncExitStack() as stack:
        routes = "server: {timeouts: {headers: 10m}}\ndiscover: false\nroutes:\n"
        for words, name in MODELS.items():
            model = await stack.enter_async_context(scripted_upstream(well(words)))
            routes += f"  {name}: {{replicas: ['{model.url}'], health: none}}\n"
        gateway = await stack.enter_async_context(running_gateway(routes, tmp_path, module="tests.support.census"))
        place, process = Place(gateway.url), gateway.process.pid
        await all_are_answered(place)
        fresh, calm = descriptors(process), await count(gateway)
        async with crowd(place.port) as idle:
            await idle.grow(many, lambda came: descriptors(process) >= fresh + came)
            idle.say(HALF_A_HEAD, every=EVERY)
            await all_are_answered(place)
            crowded = await count(gateway)
            assert descriptors(process) >= fresh + many
        while descriptors(process) > fresh:
            await asyncio.sleep(0.01)
        await all_are_answered(place)
        assert crowded.tasks - calm.tasks == many // EVERY  # who says nothing has none
        assert (await count(gateway)).tasks == calm.tasks
        assert "Traceback" not in gateway.log()


async def test_idle_sockets_are_closed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a head is told 408; who has said nothing at all is not told anything."""
    clock = Clock(monkeypatch)
    settings = one_route("http://127.0.0.1:1", "health: none", server=f"port: 0\ntimeouts: {{headers: {HEADERS_S}s}}")
    async with served(settings, tmp_path) as gateway:
        before, tasks = descriptors(os.getpid()), len(asyncio.all_tasks())
        async with crowd(gateway.port) as idle:
            await idle.grow(SOME, lambda came: len(gateway.connections) == came)
            idle.say(HALF_A_HEAD, every=EVERY)
            await turning_until(lambda: len(asyncio.all_tasks()) == tasks + SOME // EVERY)
            await clock.advance(HEADERS_S - 0.1)
            assert len(gateway.connections) == SOME
            await clock.advance(0.2)
            await turning_until(lambda: len(gateway.connections) == SOME - SOME // EVERY)
            for client in idle.sockets[::EVERY]:
                assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
                assert client.recv(65536) == b""
            await clock.advance(KEEPALIVE_S - HEADERS_S - 0.2)
            assert len(gateway.connections) == SOME - SOME // EVERY
            await clock.advance(0.2)
            await turning_until(lambda: gateway.connections == [])
            for number, client in enumerate(idle.sockets):
                if number % EVERY:
                    assert client.recv(65536) == b""
            assert len(asyncio.all_tasks()) == tasks
        assert descriptors(os.getpid()) == before


async def turning_until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until this is so, whatever the clock says."""
    for _ in range(100_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")
