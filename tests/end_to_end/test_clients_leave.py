"""A client leaves, in every phase: its upstream is closed within 100 ms, and nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import websockets

from proxy.telemetry.record import EndState
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import OK_EVENTS, Peer, chunk, content, scripted_upstream

CLOSED_WITHIN_S = 0.1

Phase = tuple[bytes, ...]
PHASES: dict[str, Phase] = {
    "waiting for headers": (),
    "before the first event": (OK_EVENTS,),
    "mid-stream": (OK_EVENTS, chunk(content("one"))),
    "inside an event": (OK_EVENTS, chunk(content("one")), chunk(b"data: {")),
}


class Watched:
    """An upstream that sends `pieces`, then waits until its connection is closed, and says when that was."""

    def __init__(self, pieces: Phase) -> None:
        self._pieces = pieces
        self.sent = asyncio.Event()
        self.closed_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(*self._pieces)
        self.sent.set()
        await peer.closed()
        self.closed_at.set_result(asyncio.get_running_loop().time())


async def closed_after(watched: Watched, leave: Callable[[], Awaitable[None] | None]) -> float:
    """Seconds from leaving to the upstream's connection being closed."""
    async with asyncio.timeout(5):
        await watched.sent.wait()
        await asyncio.sleep(0.02)  # what was sent reaches the client
        left = asyncio.get_running_loop().time()
        leaving = leave()
        if leaving is not None:
            await leaving
        return await watched.closed_at - left


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "not streaming"])
@pytest.mark.parametrize("phase", PHASES)
async def test_http_client_that_leaves_closes_its_upstream(
    phase: str, stream: bool, reset: bool, tmp_path: Path
) -> None:
    watched = Watched(PHASES[phase])
    async with scripted_upstream(watched.script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat(stream=stream)))
            took_s = await closed_after(watched, lambda: client.leave(reset=reset))
        record = await gateway.record()
    assert took_s <= CLOSED_WITHIN_S
    assert (record.end_state, record.status) == (EndState.CLIENT_CLOSED, 499)


async def test_http_client_that_leaves_within_its_body_is_no_request(tmp_path: Path) -> None:
    async def never(peer: Peer) -> None:
        await peer.request()

    async with scripted_upstream(never) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat())[:-5])
            await asyncio.sleep(0.02)
            client.leave()
        record = await gateway.record()
        assert record.end_state is EndState.CLIENT_CLOSED
        assert upstream.connections == 0


@pytest.mark.parametrize("way", ["close", "abort", "cancel"])
@pytest.mark.parametrize("phase", PHASES)
async def test_websocket_client_that_leaves_closes_its_upstream(phase: str, way: str, tmp_path: Path) -> None:
    watched = Watched(PHASES[phase])
    async with scripted_upstream(watched.script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
            await socket.send('{"model":"m","messages":[]}')
            match way:
                case "close":
                    took_s = await closed_after(watched, socket.close)
                case "abort":
                    took_s = await closed_after(watched, socket.transport.abort)
                case _:
                    took_s = await closed_after(watched, lambda: socket.send('{"type":"cancel"}'))
                    while (frame := await socket.recv()) != '{"type":"cancel"}':
                        assert isinstance(frame, str)
        record = await gateway.record()
    assert took_s <= CLOSED_WITHIN_S
    assert (record.end_state, record.transport) == (EndState.CLIENT_CLOSED, "ws")


async def test_a_cancelled_socket_serves_the_next_request(tmp_path: Path) -> None:
    async with served(
        "server: {port: 0}\nroutes: {m: 'demo://?tokens=5&interval=5ms&first=5ms'}\n", tmp_path
    ) as gateway:
        async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
            for _ in range(3):
                await socket.send('{"model":"m","messages":[{"role":"user","content":"x"}]}')
                await socket.recv()
                await socket.send('{"type":"cancel"}')
                while await socket.recv() != '{"type":"cancel"}':
                    pass
            await socket.send('{"model":"m","messages":[{"role":"user","content":"x"}]}')
            while (frame := await socket.recv()) != "[DONE]":
                assert '"error"' not in str(frame)
