"""A session's writer when its client is slow: whose upstream is paused, whose turn it is, and what shares a frame."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.downstream.mux import MuxSession
from proxy.downstream.mux_outlet import BATCH_BYTES, QUEUE_BYTES, TURN_BYTES, MuxOutlet
from tests.support.mux import Frame, MuxClient, mux
from tests.support.raw_client import chat
from tests.support.served import Served, one_route, served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BULK = "x" * 16_000


class Model:
    """A model server whose `fast` stream says as much as anybody reads, and whose `slow` one what it is told to."""

    def __init__(self, fast_events: int) -> None:
        self.sent = 0
        self.slow: asyncio.Queue[bytes] = asyncio.Queue()
        self._fast_events = fast_events

    async def script(self, peer: Peer) -> None:
        name = json.loads((await peer.request()).body)["user"]
        await peer.send(OK_EVENTS)
        if name == "slow":
            while True:
                await peer.send(await self.slow.get())
        for number in range(self._fast_events):
            await peer.send(chunk(content(f"{number}-{BULK}")))
            self.sent = number + 1
        await peer.send(chunk(STOP), LAST_CHUNK)

    async def stalled(self) -> int:
        """How many events the fast stream has got rid of when it gets rid of no more."""
        before = -1
        while self.sent != before or not self.sent:
            before = self.sent
            await asyncio.sleep(0.05)
        return self.sent


@asynccontextmanager
async def world(tmp_path: Path, fast_events: int) -> AsyncIterator[tuple[Model, Served, MuxClient]]:
    model = Model(fast_events)
    async with (
        scripted_upstream(model.script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        yield model, gateway, client


def outlet_of(gateway: Served) -> MuxOutlet:
    [session] = gateway.gateway._websockets._sessions
    assert isinstance(session, MuxSession)
    return session._outlet


@pytest.mark.parametrize("resumable", [False, True])
async def test_a_stopped_reader_pauses_the_stream_that_fills_the_queue_and_no_other(
    resumable: bool, tmp_path: Path
) -> None:
    async with world(tmp_path, 1000) as (model, gateway, client):
        await client.start("slow", body=chat(user="slow"), resumable=resumable)
        model.slow.put_nowait(chunk(content("first")))
        await client.until("chat_completion_chunk")
        client.socket.transport.pause_reading()
        await client.start("fast", body=chat(user="fast"), resumable=resumable)
        assert await model.stalled() < 999
        outlet = outlet_of(gateway)
        assert QUEUE_BYTES <= outlet.queued_bytes < 2 * QUEUE_BYTES
        for number in range(20):
            model.slow.put_nowait(chunk(content(f"slow {number}")))
        async with asyncio.timeout(2):
            while not model.slow.empty():
                await asyncio.sleep(0.005)
        model.slow.put_nowait(chunk(STOP) + LAST_CHUNK)
        await asyncio.sleep(0.02)
        client.socket.transport.resume_reading()
        frames: list[Frame] = []
        while [frame["type"] for frame in frames].count("done") < 2:
            frames.append(await client.hear())
        assert outlet.queued_bytes == 0
    for rid, count in (("slow", 23), ("fast", 1002)):
        numbers = [frame["seq"] for frame in frames if frame.get("rid") == rid and "seq" in frame]
        assert numbers == list(range(2 if rid == "slow" else 1, count + 1))
    order = [frame["rid"] for frame in frames if "seq" in frame]
    last_slow = len(order) - 1 - order[::-1].index("slow")
    assert last_slow < len(order) - 100, "the slow stream's frames went out in turn, not after the fast one's"


async def test_frames_that_waited_share_one_where_the_client_reads_lines(tmp_path: Path) -> None:
    async with world(tmp_path, 400) as (model, _, client):
        await client.say("init", v=1, features=["ndjson"])
        await client.start("fast", body=chat(user="fast"))
        client.socket.transport.pause_reading()
        await model.stalled()
        client.socket.transport.resume_reading()
        lines: list[str] = []
        frames = 0
        async with asyncio.timeout(5):
            while not lines or '"type":"done"' not in lines[-1]:
                text = await client.socket.recv()
                assert isinstance(text, str)
                lines += text.split("\n")
                frames += 1
    assert frames < len(lines)
    numbers = [frame["seq"] for frame in map(json.loads, lines) if "seq" in frame]
    assert numbers == list(range(1, 403))


async def test_a_small_replay_to_a_quick_reader_comes_at_once_and_in_order(tmp_path: Path) -> None:
    async with world(tmp_path, 300) as (_, gateway, client):
        await client.start("fast", body=chat(user="fast"), resumable=True)
        frames = await client.until("done")
        await client.say("resume", rid="again", stream=frames[1]["stream"], after=1)
        resumed, *rest = await client.until("done")
        assert resumed["from"] == 2
        assert [frame["seq"] for frame in rest] == list(range(2, 303))
        assert outlet_of(gateway).queued_bytes == 0


async def test_a_reader_that_leaves_while_frames_wait_takes_them_along(tmp_path: Path) -> None:
    async with world(tmp_path, 1000) as (model, gateway, client):
        client.socket.transport.pause_reading()
        await client.start("fast", body=chat(user="fast"))
        await model.stalled()
        outlet = outlet_of(gateway)
        client.socket.transport.abort()
        await gateway.record(1)
        assert outlet.queued_bytes == 0
        assert outlet.channels == 0


async def test_a_long_replay_is_written_a_turn_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a reader that is never behind: other clients have their turn in between."""
    async with world(tmp_path, 300) as (_, gateway, client):
        await client.start("fast", body=chat(user="fast"), resumable=True)
        frames = await client.until("done")
        outlet = outlet_of(gateway)
        written: list[int] = []
        put = outlet.put

        def counting(data: bytes) -> bool:
            written[-1] += len(data)
            return put(data)

        def turning() -> None:
            written.append(0)
            if len(written) < 10_000 and not ended.done():
                asyncio.get_running_loop().call_soon(turning)

        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(MuxOutlet, "put", lambda outlet, data: counting(data))
        turning()
        await client.say("resume", rid="again", stream=frames[1]["stream"])
        await client.until("done")
        ended.set_result(None)
    assert sum(written) > 300 * len(BULK)
    assert max(written) < 2 * (TURN_BYTES + BATCH_BYTES + 2 * len(BULK))  # it may catch up within a turn
