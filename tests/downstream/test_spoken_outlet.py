"""A client that does not read what it is told is not listened to; one that has read it, and one that goes, is."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

import pytest

from proxy.downstream.mux import MuxSession
from proxy.downstream.spoken_outlet import UNREAD_BYTES, SpokenOutlet
from tests.support.mux import held, mux_session

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.served import Served


def outlet_of(gateway: Served) -> SpokenOutlet:
    [session] = gateway.gateway._websockets._sessions
    assert isinstance(session, MuxSession)
    return session._outlet


async def test_a_client_that_floods_and_does_not_read_is_not_listened_to(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, gateway, _):
        client.socket.transport.pause_reading()
        [connection] = [
            each for runner in gateway.gateway._runners if runner.server for each in runner.server.connections
        ]

        async def flood() -> None:
            for number in count():
                await client.start(f"r{number}", path="/nothing/here")

        flooding = asyncio.create_task(flood())
        done, _pending = await asyncio.wait([flooding], timeout=0.3)
        assert not done
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1024 * 1024
        flooding.cancel()
        client.socket.transport.resume_reading()
        assert (await client.until("error"))[-1]["status"] == 404


@pytest.mark.parametrize("end", ["read", "closed"])
async def test_who_waits_for_a_client_to_catch_up_is_told_when_it_has_or_goes(end: str, tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, gateway, _):
        await client.say("ping")
        await client.until("pong")
        outlet = outlet_of(gateway)
        await outlet.catch_up()  # there is nothing to wait for
        outlet._full, outlet._said_bytes = True, UNREAD_BYTES + 1
        waiting = asyncio.create_task(outlet.catch_up())
        await asyncio.sleep(0)
        assert not waiting.done()
        if end == "read":
            outlet._change(False)
        else:
            outlet.shut()
        async with asyncio.timeout(5):
            await waiting
        assert not outlet.clogged
