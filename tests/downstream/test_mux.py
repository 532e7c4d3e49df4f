"""The mux dialect, frame by frame, as an independent client sees it: one connection's rules."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import websockets
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from proxy.downstream import mux as sessions
from proxy.downstream.mux import MuxSession
from proxy.telemetry.record import EndState
from tests.support.mux import held, mux, mux_session, streaming
from tests.support.raw_client import get, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path


ONE, TWO = content("one"), content("two")
KEYS = 'auth: {keys: [{name: web, key: sk-canary-w3b}, {name: other, key: sk-canary-0th3r, models: ["x"]}]}\n'
DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"


async def test_a_chat_is_ready_accepted_chunks_and_done(tmp_path: Path) -> None:
    async with mux_session(streaming(ROLE + ONE + TWO + STOP + DONE), tmp_path) as (client, gateway, upstream):
        await client.start()
        ready, accepted, *chunks, done = await client.until("done")
        record = await gateway.record()
    assert (ready["type"], ready["v"], ready["features"], ready["heartbeat_s"]) == ("ready", 1, [], 25)
    assert ready["limits"] == {
        "streams": 16,
        "message_bytes": 33554432,
        "age_s": 3600,
        "detach_s": 30,
        "replay_s": 120,
    }
    assert accepted == {
        "type": "accepted",
        "rid": "r1",
        "model": "m",
        "status": 200,
        "request_id": record.request_id,
    }
    assert [client.heard[2 + at] for at in range(4)] == [
        f'{{"data":{{"chunk":{each[6:-2].decode()},"stage_id":"r1"}},'
        f'"type":"chat_completion_chunk","rid":"r1","seq":{seq}}}'
        for seq, each in enumerate((ROLE, ONE, TWO, STOP), 1)
    ]
    assert len(chunks) == 4
    assert done == {"data": {"stage_id": "r1"}, "type": "done", "rid": "r1", "seq": 5}
    assert json.loads(upstream.requests[0].body)["stream"] is True
    assert (record.path, record.transport, record.dialect, record.status) == (
        "/v1/chat/completions",
        "ws",
        "mux",
        200,
    )
    assert (record.end_state, record.route, record.events) == (EndState.COMPLETED, "m", 5)
    assert record.bytes_out > sum(len(each) for each in (ROLE, ONE, TWO, STOP))


# ---- the connection's rules ----


@pytest.mark.parametrize(
    ("message", "code"),
    [(b"binary", 1003), ("x" * 2000, 1009), ([b"\xff\xfe"], 1007)],
    ids=["binary", "too large", "no UTF-8"],
)
async def test_a_message_that_breaks_the_rules_closes_the_socket_and_nothing_follows(
    message: str | bytes | list[bytes], code: int, tmp_path: Path
) -> None:
    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        while True:
            await peer.send(chunk(content("x")))
            await asyncio.sleep(0.002)

    async with mux_session(endless, tmp_path, server="port: 0\nmax_body: 1000") as (client, gateway, _):
        await client.start(resumable=True)
        await client.until("chat_completion_chunk")
        await client.socket.send(message, text=True if isinstance(message, list) else None)
        assert (await client.closed())[0] == code
        assert (await gateway.record()).path == "/v1/ws"


UPGRADE = get(
    "/v1/ws",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: llm-mux.v1",
)


async def test_an_unmasked_frame_is_a_protocol_error(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(UPGRADE + WireFrame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=False))
        async with asyncio.timeout(5):
            rest = await client.reader.read(-1)
    assert rest.endswith(b"\x88\x0a" + (1002).to_bytes(2) + b"unmasked")


async def test_silence_is_broken_by_a_ping_that_pages_can_see(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, server="port: 0\nwebsocket: {ping: 100ms}") as (client, _, _):
        ping = await client.hear()
    assert ping["type"] == "ping"
    assert isinstance(ping["t"], int)


async def test_a_session_that_is_old_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with mux_session(script, tmp_path, server="port: 0\nwebsocket: {age: 1h}") as (client, gateway, _):
        await client.start()
        await client.until("accepted")
        [session] = gateway.gateway._websockets._sessions
        assert isinstance(session, MuxSession)
        session._grow_old()
        goaway = (await client.until("goaway"))[-1]
        await client.start("r2")
        [refused] = await client.ended("r2")
        go_on.set()
        *_, done = await client.ended()
        assert await client.closed() == (1012, "age")
    assert (goaway["reason"], goaway["in_ms"]) == ("age", None)
    assert 500 <= goaway["reconnect_ms"] <= 2500
    assert (refused["status"], refused["data"]["error"]["code"], refused["seq"]) == (503, "draining", 1)
    assert done["type"] == "done"


async def test_an_idle_session_that_is_old_is_closed(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, server="port: 0\nwebsocket: {age: 30ms}") as (client, _, _):
        assert await client.closed() == (1012, "age")
    assert json.loads(client.heard[-1])["type"] == "goaway"


async def test_a_drain_is_told_lets_streams_finish_and_closes_with_1001(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with mux_session(script, tmp_path, server="port: 0\ndrain: 20s") as (client, gateway, _):
        await client.start()
        await client.until("chat_completion_chunk")
        draining = asyncio.create_task(gateway.gateway.drain())
        [goaway] = await client.until("goaway")
        await client.start("r2")
        [refused] = await client.ended("r2")
        go_on.set()
        *_, done = await client.ended()
        assert await client.closed() == (1001, "draining")
        await draining
    assert (goaway["reason"], goaway["in_ms"]) == ("drain", 20_000)
    assert (refused["status"], refused["data"]["error"]["code"]) == (503, "draining")
    assert done["type"] == "done"


async def test_the_drains_deadline_is_an_error_frame_and_then_1001(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, server="port: 0\ndrain: 50ms") as (client, gateway, _):
        await client.start(resumable=True)
        await client.until("chat_completion_chunk")
        draining = asyncio.create_task(gateway.gateway.drain())
        *_, error = await client.ended()
        assert await client.closed() == (1001, "draining")
        await draining
    assert (error["status"], error["data"]["error"]["code"], error["seq"]) == (503, "draining", 2)
    assert gateway.records[0].end_state is EndState.DRAINED


# ---- who it is ----


async def test_init_must_come_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "INIT_WITHIN_S", 0.05)
    async with mux_session(held, tmp_path, more=KEYS) as (client, _, _):
        assert await client.closed() == (4408, "request_timeout")
    assert json.loads(client.heard[0])["status"] == 408


async def test_a_key_shown_at_the_upgrade_needs_no_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "INIT_WITHIN_S", 0.02)
    async with (
        scripted_upstream(streaming(ONE + STOP)) as upstream,
        served(one_route(upstream.url) + KEYS, tmp_path) as gateway,
        mux(gateway, subprotocols=["llm-mux.v1", "openai-insecure-api-key.sk-canary-w3b"]) as client,
    ):
        await asyncio.sleep(0.05)
        await client.start()
        assert (await client.until("done"))[-1]["seq"] == 3
        assert client.socket.subprotocol == "llm-mux.v1"


async def test_a_wrong_key_at_the_upgrade_is_refused_in_http(tmp_path: Path) -> None:
    async with served(DEMO + KEYS, tmp_path) as gateway:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with mux(gateway, additional_headers={"Authorization": "Bearer sk-canary-wrong"}):
                pass
    assert refused.value.response.status_code == 401


async def test_a_page_of_elsewhere_is_refused_in_http(tmp_path: Path) -> None:
    async with served(DEMO + KEYS, tmp_path) as gateway:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with mux(gateway, origin="https://evil.test"):
                pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("path", ["/v1/ws", "/v1/chat/completions", "/v1/responses", "/v1/realtime", "/stream/v1/chat"])
async def test_mux_is_spoken_on_every_websocket_path(path: str, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, mux(gateway, path) as client:
        await client.start()
        assert (await client.until("done"))[0]["type"] == "ready"
        assert gateway.gateway._websockets.sessions()["mux"] == 1


async def test_a_window_nobody_acknowledges_does_not_hold_the_drain_up(tmp_path: Path) -> None:
    async with mux_session(streaming(ONE + TWO + STOP), tmp_path) as (client, gateway, _):
        await client.say("init", v=1, features=["ack"])
        await client.start(window=1)
        await client.until("chat_completion_chunk")
        draining = asyncio.create_task(gateway.gateway.drain())
        assert await client.closed() == (1001, "draining")
        await draining
