"""WebSocket endpoints: where they are, what their records say, how they end with the gateway."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import websockets
from websockets.frames import Frame, Opcode

from proxy.downstream.connection import ClientConnection, Upgraded
from proxy.downstream.spoken_outlet import SpokenOutlet
from proxy.downstream.websocket import BARE_PATHS
from proxy.telemetry.record import EndState
from tests.support.raw_client import chat, get, raw_client
from tests.support.served import Served, one_route, served
from tests.support.tls import certificate
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"


@pytest.mark.parametrize("path", BARE_PATHS)
async def test_a_session_leaves_a_record_of_its_own(path: str, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        async with websockets.connect(f"{gateway.ws_url}{path}?ticket=canary") as socket:
            assert socket.response is not None
            assert socket.response.headers["server"] == "penstock"
        record = await gateway.record()
    assert (record.method, record.path, record.status, record.end_state) == ("GET", path, 101, EndState.COMPLETED)
    assert (record.transport, record.dialect, record.route) == ("ws", "bare", "unknown")


@pytest.mark.parametrize("path", ["/v1/ws", "/v1/chat/completions"])
async def test_no_upgrade_is_a_405(path: str, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(get(path))
        answered = await client.answer("GET")
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (405, "method_not_allowed")


async def test_compression_is_not_agreed_to(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        async with websockets.connect(f"{gateway.ws_url}/v1/ws", compression="deflate") as socket:
            assert socket.response is not None
            assert "sec-websocket-extensions" not in socket.response.headers


async def held(peer: Peer) -> None:
    """Content, and then nothing."""
    await peer.request()
    await peer.send(OK_EVENTS, chunk(content("one")))
    await peer.closed()


async def test_a_drain_lets_the_stream_finish_refuses_the_next_and_closes_with_1001(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("one")))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with (
            websockets.connect(f"{gateway.ws_url}/v1/ws") as busy,
            websockets.connect(f"{gateway.ws_url}/v1/ws") as idle,
        ):
            await busy.send(json.dumps(chat()))
            await busy.recv()
            draining = asyncio.create_task(gateway.gateway.drain())
            await asyncio.sleep(0)
            await idle.send(json.dumps(chat()))
            refusal = json.loads(await idle.recv())
            assert (refusal["status"], refusal["error"]["code"]) == (503, "draining")
            go_on.set()
            assert [await busy.recv(), await busy.recv()] == [STOP[6:-2].decode(), "[DONE]"]
            for socket in (busy, idle):
                with pytest.raises(websockets.ConnectionClosedOK):
                    await asyncio.wait_for(socket.recv(), 2)
                assert (socket.close_code, socket.close_reason) == (1001, "draining")
            await asyncio.wait_for(draining, 2)
    assert {record.end_state for record in gateway.records} == {EndState.COMPLETED, EndState.SHED}


async def test_the_drains_deadline_is_an_error_frame_and_then_1001(tmp_path: Path) -> None:
    routes = one_route("{}", server="port: 0\ndrain: 50ms")
    async with scripted_upstream(held) as upstream, served(routes.replace("{}", upstream.url), tmp_path) as gateway:
        async with websockets.connect(f"{gateway.ws_url}/v1/ws") as socket:
            await socket.send(json.dumps(chat()))
            await socket.recv()
            draining = asyncio.create_task(gateway.gateway.drain())
            last = json.loads(await asyncio.wait_for(socket.recv(), 2))
            with pytest.raises(websockets.ConnectionClosedOK):
                await socket.recv()
            assert socket.close_code == 1001
            await draining
    assert (last["status"], last["error"]["code"]) == (503, "draining")
    assert gateway.records[0].end_state is EndState.DRAINED


async def test_sessions_that_do_not_answer_do_not_hold_the_drain_up(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        sockets = [await websockets.connect(f"{gateway.ws_url}/v1/ws", close_timeout=0.1) for _ in range(5)]
        for socket in sockets:
            socket.transport.pause_reading()
        started = asyncio.get_running_loop().time()
        await gateway.gateway.drain()
        assert asyncio.get_running_loop().time() - started < 1.5
        for socket in sockets:
            socket.transport.abort()


async def test_a_gateway_that_stops_at_once_says_so(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, websockets.connect(f"{gateway.ws_url}/v1/ws") as socket:
        await gateway.gateway.stop()
        async with asyncio.timeout(5):
            await socket.wait_closed()
        assert socket.close_code == 1001
        assert (await gateway.record()).is_session


async def test_a_client_that_leaves_while_it_is_let_in_leaves_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(connection: ClientConnection) -> Upgraded:
        assert connection.transport is not None
        connection.transport.abort()
        return upgraded(connection)

    upgraded = ClientConnection.upgraded
    monkeypatch.setattr(ClientConnection, "upgraded", lost)
    async with served(DEMO, tmp_path) as gateway:
        with pytest.raises((ConnectionError, websockets.InvalidMessage)):
            await websockets.connect(f"{gateway.ws_url}/v1/ws")
        record = await gateway.record()
        assert not gateway.gateway._websockets.sessions()
    assert (record.end_state, record.is_session) == (EndState.CLIENT_CLOSED, False)


async def test_a_session_over_tls_is_like_any_other(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(own))
    tls = f"server: {{port: 0, tls: {{certificate: {own.name}, key: {key.name}}}}}\n"
    async with served(tls + "routes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n", tmp_path) as gateway:
        async with websockets.connect(f"{gateway.ws_url}/v1/ws", ssl=trusting) as socket:
            await socket.send(json.dumps(chat()))
            async with asyncio.timeout(5):
                while await socket.recv() != "[DONE]":
                    pass
        record = await gateway.record(1)
    assert (record.is_session, record.end_state) == (True, EndState.COMPLETED)


UPGRADE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'


def text(payload: bytes, *, masked: bool) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=masked)


@pytest.mark.parametrize("first", [b"", text(b'{"model":"nope"}', masked=True)], ids=["first", "second"])
@pytest.mark.parametrize("early", [False, True], ids=["after the answer", "with the upgrade"])
async def test_an_unmasked_frame_is_a_protocol_error(first: bytes, early: bool, tmp_path: Path) -> None:
    unmasked = text(REQUEST, masked=False)
    async with served(one_route("demo://"), tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(UPGRADE + (first + unmasked if early else b""))
        if not early:
            assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
            await client.send(first)
            await client.send(unmasked)
        async with asyncio.timeout(5):
            rest = await client.reader.read(-1)
        assert rest.endswith(b"\x88\x0a" + (1002).to_bytes(2) + b"unmasked")
        assert [record.status for record in gateway.records if record.path == "/v1/ws"][-1] != 500


async def test_masked_frames_sent_with_the_upgrade_are_served(tmp_path: Path) -> None:
    url = "demo://?tokens=2&interval=1ms&first=1ms"
    async with served(one_route(url), tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(UPGRADE + text(REQUEST, masked=True))
        async with asyncio.timeout(5):
            assert await client.reader.readuntil(b"[DONE]")


@pytest.mark.parametrize("value", [b"\xff\xe9", "grüße".encode()], ids=["no UTF-8", "UTF-8"])
async def test_a_header_of_any_bytes_does_not_keep_a_client_out(value: bytes, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(UPGRADE.replace(b"Host:", b"X-Team: " + value + b"\r\nHost:") + text(REQUEST, masked=True))
        async with asyncio.timeout(5):
            assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readuntil(b"[DONE]")


DIALECTS = {"bare": ("/v1/ws", None), "mux": ("/v1/ws", "llm-mux.v1"), "responses": ("/v1/responses", None)}


def dialled(gateway: Served, dialect: str) -> websockets.connect:
    path, subprotocol = DIALECTS[dialect]
    offered = [websockets.Subprotocol(subprotocol)] if subprotocol else None
    return websockets.connect(gateway.ws_url + path, subprotocols=offered, max_size=None)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_fault_of_ours_closes_with_1011_and_is_logged(
    dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_log: pytest.LogCaptureFixture
) -> None:
    def broken(outlet: object) -> bool:
        raise RuntimeError("a canary in the mine")

    monkeypatch.setattr(SpokenOutlet, "clogged", property(broken))
    async with served(DEMO, tmp_path) as gateway, dialled(gateway, dialect) as socket:
        await socket.send("{}")
        async with asyncio.timeout(5):
            with suppress(websockets.ConnectionClosedError):
                async for frame in socket:
                    assert "canary" not in str(frame)
        assert (socket.close_code, socket.close_reason) == (1011, "internal_error")
        await gateway.record()
        assert EndState.ERROR in {record.end_state for record in gateway.records}
    assert "a canary in the mine" in quiet_log.text
    quiet_log.clear()


@pytest.mark.parametrize("dialect", ["bare", "mux"])
async def test_an_idle_session_does_not_hold_its_last_message(dialect: str, tmp_path: Path) -> None:
    size = 8 << 20
    body = json.dumps({"model": "nope", "messages": [{"role": "user", "content": "\U0001f30a" + "x" * size}]})
    message = f'{{"type":"start","rid":"r1","path":"/v1/x","body":{body}}}' if dialect == "mux" else body
    async with served(DEMO, tmp_path) as gateway, dialled(gateway, dialect) as socket:
        await socket.send("{}")
        await socket.recv()
        gc.collect()
        tracemalloc.start()
        try:
            await socket.send(message)
            while json.loads(await socket.recv()).get("status") != 404:
                pass
            await gateway.record(dialect == "bare")
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held < size // 2
