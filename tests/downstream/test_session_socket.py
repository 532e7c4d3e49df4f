"""A socket that is flooded: closed with a code, at its neighbours' expense by no more than a turn each."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from websockets.frames import Frame, Opcode

from proxy.downstream import session_socket
from proxy.downstream.connection import ClientConnection
from proxy.downstream.server import ClientRunner
from proxy.downstream.session_socket import MESSAGES_A_TURN, Socket
from proxy.telemetry.record import EndState
from proxy.wire.client_frames import IDLE_AT_ONCE
from tests.support.mux import mux
from tests.support.raw_client import RawClient, get, raw_client
from tests.support.realtime_server import realtime_server
from tests.support.served import served

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 10.0
DIALECTS = {
    "bare": ("/v1/ws", None, 4429),
    "stages": ("/stream/v1/chat", None, 4429),
    "mux": ("/v1/ws", "llm-mux.v1", 4429),
    "responses": ("/v1/responses", None, 1008),
    "realtime": ("/v1/realtime?model=voice", None, 1008),
}
FLOODS = {
    "pings": Frame(Opcode.PING, b""),
    "pongs": Frame(Opcode.PONG, b"x" * 100),
    "fragments": Frame(Opcode.TEXT, b"", fin=False),
}


def upgrade(path: str = "/v1/ws", subprotocol: str | None = None) -> bytes:
    offered = [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
    head = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    return get(path, *head, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *offered)


def flood(kind: str, count: int) -> bytes:
    """So many frames; of a fragmented message the first begins it."""
    first = FLOODS[kind]
    if kind != "fragments":
        return first.serialize(mask=True) * count
    return first.serialize(mask=True) + Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * (count - 1)


async def is_closed_with(client: RawClient, code: int, reason: bytes = b"too_many_frames") -> bool:
    """Whether the gateway says so; what it says before that is skipped."""
    async with asyncio.timeout(PATIENCE_S):
        await client.reader.readuntil(bytes([0x88, 2 + len(reason)]) + code.to_bytes(2) + reason)
    return True


@pytest.mark.parametrize(
    ("dialect", "kind"), [*[(dialect, "pings") for dialect in DIALECTS], ("mux", "pongs"), ("mux", "fragments")]
)
async def test_a_flood_of_frames_is_closed_with_a_code_while_it_goes_on(
    dialect: str, kind: str, tmp_path: Path
) -> None:
    path, subprotocol, code = DIALECTS[dialect]
    async with realtime_server() as voice:
        routes = f"server: {{port: 0}}\nroutes: {{m: 'demo://', voice: '{voice.url}'}}\n"
        async with served(routes, tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(upgrade(path, subprotocol))
            await client.reader.readuntil(b"\r\n\r\n")
            closed = asyncio.create_task(is_closed_with(client, code))
            client.writer.write(flood(kind, 200 * IDLE_AT_ONCE))  # more than any buffer takes: most is never read
            assert await closed
            client.leave(reset=True)


async def test_a_flood_that_comes_with_the_upgrade_is_none_less(tmp_path: Path) -> None:
    async with served("server: {port: 0}\nroutes: {m: 'demo://'}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(upgrade() + flood("pings", 2 * IDLE_AT_ONCE))
            assert await is_closed_with(client, 4429)


async def test_the_session_of_a_flood_is_over_though_its_client_is_still_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_socket, "LINGER_S", 0.05)
    async with served("server: {port: 0}\nroutes: {m: 'demo://'}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(upgrade())
            await client.reader.readuntil(b"\r\n\r\n")
            assert gateway.gateway._websockets.sessions() == {"bare": 1}
            client.writer.write(flood("pings", 2 * IDLE_AT_ONCE))
            record = await gateway.record()
            assert not gateway.gateway._websockets.sessions()
            assert await client.rest()
    assert (record.is_session, record.status) == (True, 101)


async def test_a_flood_ends_what_runs_and_what_can_be_resumed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_socket, "LINGER_S", 0.05)
    routes = "server: {port: 0}\nroutes: {m: 'demo://?tokens=1000&interval=20ms&first=1ms'}\n"
    async with served(routes, tmp_path) as gateway:
        async with mux(gateway) as client:
            await client.start("r1")
            await client.until("accepted")
            await client.start("r2", resumable=True)
            stream = (await client.until("accepted"))[-1]["stream"]
            client.socket.transport.write(flood("pings", 2 * IDLE_AT_ONCE))
            assert await client.closed() == (4429, "too_many_frames")
        async with mux(gateway) as client:
            await client.say("resume", rid="r2", stream=stream)
            assert (await client.until("resumed"))[-1]["live"] is True
            ended = [record for record in gateway.records if record.path == "/v1/chat/completions"]
            assert [record.end_state for record in ended] == [EndState.CLIENT_CLOSED]


async def test_a_few_pings_and_fragments_are_no_flood(tmp_path: Path) -> None:
    message = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    pieces = [message[at : at + 3] for at in range(0, len(message), 3)]
    frames = [Frame(Opcode.CONT if at else Opcode.TEXT, each, fin=False) for at, each in enumerate(pieces)]
    sent = b"".join(each.serialize(mask=True) + flood("pings", 1) for each in frames)
    async with served("server: {port: 0}\nroutes: {m: 'demo://?tokens=2&first=1ms'}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(upgrade() + sent + Frame(Opcode.CONT, b"").serialize(mask=True))
            async with asyncio.timeout(PATIENCE_S):
                await client.reader.readuntil(b"[DONE]")


async def test_others_have_their_turn_between_the_messages_of_one_client() -> None:
    """Counted in turns of the event loop, not in time."""
    handled, most_in_a_turn, over = 0, 0, asyncio.Event()
    count = 5000

    async def swallow(request: web.Request) -> Socket:
        nonlocal handled
        connection = request.protocol
        assert isinstance(connection, ClientConnection)
        connection.watch_frames()
        socket = Socket(compress=False)
        await socket.prepare(request)
        async for _ in socket:
            handled += 1
            if handled == count:
                over.set()
        return socket

    async def watch() -> None:
        nonlocal most_in_a_turn
        while not over.is_set():
            before = handled
            await asyncio.sleep(0)
            most_in_a_turn = max(most_in_a_turn, handled - before)

    app = web.Application()
    app.router.add_get("/", swallow)
    runner = ClientRunner(app, 10.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with raw_client(runner.addresses[0][1]) as client:
            await client.send(upgrade("/"))
            await client.reader.readuntil(b"\r\n\r\n")
            watching = asyncio.create_task(watch())
            await client.send(Frame(Opcode.TEXT, b"{}").serialize(mask=True) * count)
            async with asyncio.timeout(PATIENCE_S):
                await watching
    finally:
        await runner.cleanup()
    assert handled == count
    assert most_in_a_turn <= 2 * MESSAGES_A_TURN
