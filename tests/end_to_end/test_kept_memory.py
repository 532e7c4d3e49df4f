"""What many sessions leave behind when they have gone: their streams for a while, and then nothing."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

from proxy.downstream.session_socket import Socket
from proxy.streams.numbered import NumberedStream
from tests.support.mux import mux
from tests.support.served import Served, served

if TYPE_CHECKING:
    from pathlib import Path

SESSIONS, STREAMS = 40, 5
SETTINGS = "{port: 0, websocket: {replay: 700ms}}"
DEMO = f"server: {SETTINGS}\nroutes: {{m: 'demo://?tokens=5&interval=0ms&first=0ms'}}\n"


def kept_anywhere() -> int:
    gc.collect()
    return sum(type(each) is NumberedStream for each in gc.get_objects())


async def one_session(gateway: Served) -> None:
    async with mux(gateway) as client:
        for number in range(STREAMS):
            await client.start(f"r{number}", resumable=True)
        ended = 0
        while ended < STREAMS:
            ended += (await client.hear())["type"] == "done"


async def test_streams_of_sessions_that_have_gone_are_kept_under_the_cap_and_then_forgotten(tmp_path: Path) -> None:
    before = kept_anywhere()
    async with served(DEMO, tmp_path) as gateway:
        store = gateway.gateway._streams.store
        for _ in range(SESSIONS // 10):
            await asyncio.gather(*[one_session(gateway) for _ in range(10)])
        kept = kept_anywhere() - before
        assert 0 < kept <= SESSIONS * STREAMS
        assert 0 < store._held_bytes <= store.limits.all_bytes
        async with asyncio.timeout(5):
            while store._streams:
                await asyncio.sleep(0.02)
        assert store._held_bytes == 0
        assert kept_anywhere() == before
        assert store.next_deadline() is None


async def test_a_session_whose_client_has_vanished_is_not_held_until_its_next_ping(tmp_path: Path) -> None:
    def sockets() -> int:
        gc.collect()
        return sum(issubclass(type(each), Socket) for each in gc.get_objects())

    before = sockets()
    async with served("server: {port: 0}\nroutes: {m: 'demo://?tokens=1000&interval=50ms'}\n", tmp_path) as gateway:
        for _ in range(5):
            async with mux(gateway) as client:
                await client.start()
                await client.hear()
                client.socket.transport.abort()
        async with asyncio.timeout(10):  # a ping is 25 s away
            while sockets() > before:
                await asyncio.sleep(0.02)
