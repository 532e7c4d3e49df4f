"""The bare dialect on the stream routes, frame by frame, as an independent client sees it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.telemetry.record import EndState
from tests.support.raw_client import ask, get
from tests.support.served import one_route, served
from tests.support.stages import framed, stage
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    Script,
    answer,
    answering,
    chunk,
    content,
    event,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.served import Served
    from tests.support.upstream import ScriptedUpstream

PATHS = ("/stream/v1/chat", "/stream/v1/toolchain")
REQUEST = json.dumps(stage())
CANCEL = '{"type":"cancel"}'
ONE = content("one")
CUT = "The answer stopped before its end. Send the request again."


@asynccontextmanager
async def session(
    script: Script, tmp_path: Path, *settings: str, path: str = PATHS[0], server: str = "port: 0"
) -> AsyncIterator[tuple[websockets.ClientConnection, Served, ScriptedUpstream]]:
    """A socket to a gateway whose only replica plays `script`."""
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, *settings, server=server), tmp_path) as gateway,
        websockets.connect(gateway.ws_url + path, max_size=None, close_timeout=1) as socket,
    ):
        yield socket, gateway, upstream


def streaming(*events: bytes) -> Script:
    return answering(OK_EVENTS, chunk(b"".join(events)), LAST_CHUNK)


async def open_ended(peer: Peer) -> None:
    """One chunk, then silence until the gateway has closed; every connection anew."""
    await peer.request()
    await peer.send(OK_EVENTS, chunk(ONE))
    await peer.closed()


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.closed()


def chunks(*events: bytes) -> list[str]:
    return [
        "chat_completion_chunk "
        + json.dumps({"chunk": json.loads(each[6:])}, ensure_ascii=False, separators=(",", ":"))
        for each in events
    ]


async def to_its_end(socket: websockets.ClientConnection) -> list[str]:
    """The frames of one stage, its last one among them."""
    frames: list[str] = []
    async with asyncio.timeout(5):
        while not frames or json.loads(frames[-1])["event"] not in ("done", "cancel", "error"):
            frames.append(str(await socket.recv()))
    return frames


async def nothing_follows(socket: websockets.ClientConnection) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(socket.recv(), 0.02)


@pytest.mark.parametrize("path", PATHS)
async def test_each_event_is_a_frame_and_the_socket_serves_the_next_stage(path: str, tmp_path: Path) -> None:
    async with session(streaming(ROLE, ONE, STOP, DONE), tmp_path, path=path) as (socket, gateway, upstream):
        for _ in range(2):
            await socket.send(REQUEST)
            frames = await to_its_end(socket)
            assert framed(frames) == [*chunks(ROLE, ONE, STOP), "done {}"]
        await nothing_follows(socket)
        assert upstream.requests[0].target == "/v1/chat/completions"
        assert json.loads(upstream.requests[0].body)["stream"] is True
    assert frames[1] == (
        '{"event":"chat_completion_chunk","id":"s-chunk-1","data":{"stage_id":"s","chunk":' + ONE[6:-2].decode() + "}}"
    )
    assert frames[3] == '{"event":"done","id":"s-chunk-3","data":{"stage_id":"s"}}'
    for record in gateway.records[:2]:
        assert (record.status, record.end_state) == (200, EndState.COMPLETED)
        assert (record.transport, record.dialect, record.path) == ("ws", "bare", path)
        assert record.bytes_in == len(REQUEST)
        assert record.bytes_out > sum(map(len, frames))


TRANSCRIPTS: dict[str, tuple[bytes, list[str], EndState]] = {
    "without [DONE]": (ONE + STOP, [*chunks(ONE, STOP), "done {}"], EndState.COMPLETED),
    "beyond ASCII": (content("über 🌊") + STOP, [*chunks(content("über 🌊"), STOP), "done {}"], EndState.COMPLETED),
    "data over several lines": (
        b'data: {"choices":\r\ndata: [{"delta":{"content":"a"}}]}\n\n' + STOP,
        [*chunks(b'data: {"choices":[{"delta":{"content":"a"}}]}', STOP), "done {}"],
        EndState.COMPLETED,
    ),
    "no UTF-8": (
        ONE + event(b'{"choices":[{"delta":{"content":"\xff"}}]}') + STOP,
        [
            *chunks(ONE),
            r'chat_completion_chunk {"chunk":{"raw":"{\"choices\":[{\"delta\":{\"content\":\"\\xff\"}}]}"}}',
            *chunks(STOP),
            "done {}",
        ],
        EndState.COMPLETED,
    ),
    "a chunk that would forge the end": (
        ONE + event(b'{"a":1}},"event":"done","data":{"b":{}') + STOP,
        [*chunks(ONE, STOP), "done {}"],
        EndState.COMPLETED,
    ),
    "an error event": (
        ONE + event(b'{"error":{"message":"Out of memory."}}') + STOP + DONE,
        [*chunks(ONE), 'error {"error":"Out of memory."}'],
        EndState.UPSTREAM_ERROR,
    ),
    "cut": (ONE, [*chunks(ONE), 'error {"error":"' + CUT + '"}'], EndState.UPSTREAM_TRUNCATED),
}


@pytest.mark.parametrize("case", TRANSCRIPTS)
async def test_transcript(case: str, tmp_path: Path) -> None:
    sent, expected, end_state = TRANSCRIPTS[case]
    async with session(streaming(sent), tmp_path) as (socket, gateway, _):
        await socket.send(REQUEST)
        assert framed(await to_its_end(socket)) == expected
        await nothing_follows(socket)
        await socket.send(REQUEST)  # the socket lives
        assert framed(await to_its_end(socket)) == expected
    assert [record.end_state for record in gateway.records[:2]] == [end_state] * 2


async def test_a_stall_is_an_error_frame(tmp_path: Path) -> None:
    async with session(open_ended, tmp_path, "timeouts: {idle: 50ms}") as (socket, gateway, _):
        await socket.send(REQUEST)
        assert framed(await to_its_end(socket)) == [
            *chunks(ONE),
            'error {"error":"Nothing came for timeouts.idle (0.05 s). Send the request again."}',
        ]
    assert gateway.records[0].end_state is EndState.UPSTREAM_IDLE


REFUSALS: dict[str, tuple[str, str, int, str]] = {
    "no JSON": ("canary", "", 422, "Invalid JSON"),
    "a list": ("[]", "", 422, "Input should be an object"),
    "no prompt": ('{"stage_id":"s","model_container":"m"}', "s", 422, "user_prompt: Field required"),
    "an id of two lines": (json.dumps(stage(stage_id="a\nb")), "", 422, "stage_id: Give at most 1024 characters"),
    "no stream": (json.dumps(stage(stream=False)), "s", 400, "This endpoint always streams"),
    "tools": (json.dumps(stage(strategy="tool_call")), "s", 400, "send this request to /stream/v1/toolchain"),
    "an unknown model": (json.dumps(stage(model_container="x")), "s", 400, "Unknown model: x. Available models: ['m']"),
    "a message of the bare dialect's other endpoints": (
        '{"model":"m","messages":[]}',
        "",
        422,
        "stage_id: Field required",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_one_error_frame_and_the_socket_stays_open(case: str, tmp_path: Path) -> None:
    message, stage_id, status, said = REFUSALS[case]
    async with session(streaming(ONE, STOP), tmp_path) as (socket, gateway, _):
        await socket.send(message)
        frames = await to_its_end(socket)
        [line] = framed(frames, stage_id)
        assert line.startswith("error ")
        assert said in line
        assert "canary" not in line
        await socket.send(REQUEST)
        assert len(await to_its_end(socket)) == 3
    assert (gateway.records[0].status, gateway.records[0].end_state) == (status, EndState.REJECTED)


UPSTREAM_ANSWERS: dict[str, tuple[bytes, int, str, EndState]] = {
    "a 429": (answer(429, b'{"error":{"message":"slow down"}}'), 429, "slow down", EndState.UPSTREAM_REJECTED),
    "a 500 of HTML": (
        answer(500, b"<html>"),
        *(500, "The model server answered with status 500.", EndState.UPSTREAM_ERROR),
    ),
    "an error event first": (
        OK_EVENTS + chunk(event(b'{"error":{"message":"m"}}')) + LAST_CHUNK,
        *(502, "m", EndState.UPSTREAM_ERROR),
    ),
    "an answer in one piece": (
        answer(200, b'{"choices":[]}'),
        *(502, "The model server did not answer with an event stream.", EndState.UPSTREAM_ERROR),
    ),
}


@pytest.mark.parametrize("case", UPSTREAM_ANSWERS)
async def test_an_upstreams_refusal_is_one_error_frame(case: str, tmp_path: Path) -> None:
    sent, status, said, end_state = UPSTREAM_ANSWERS[case]
    async with session(answering(sent), tmp_path) as (socket, gateway, _):
        for _ in range(2):
            await socket.send(REQUEST)
            assert framed(await to_its_end(socket)) == [f'error {{"error":"{said}"}}']
    assert [(record.status, record.end_state) for record in gateway.records[:2]] == [(status, end_state)] * 2


# ---- one at a time, cancel, leave, drain ----


async def test_a_second_request_meanwhile_is_refused_under_its_own_id_and_the_first_goes_on(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with session(script, tmp_path) as (socket, _, upstream):
        await socket.send(REQUEST)
        first = str(await socket.recv())
        await socket.send(json.dumps(stage(stage_id="other")))
        [refusal] = framed([str(await socket.recv())], "other")
        assert refusal.startswith('error {"error":"One request at a time')
        go_on.set()
        assert framed([first, *await to_its_end(socket)]) == [*chunks(ONE, STOP), "done {}"]
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("when", ["before any event", "after one", "at once"])
async def test_a_cancelled_stage_ends_with_cancel_and_the_next_one_runs(when: str, tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await (open_ended if when == "after one" else silent)(peer)
        closed.set()

    async with session(script, tmp_path) as (socket, gateway, upstream):
        for number in range(2):
            await socket.send(REQUEST)
            frames = [str(await socket.recv())] if when == "after one" else []
            while when == "before any event" and len(upstream.requests) <= number:
                await asyncio.sleep(0.001)
            await socket.send(CANCEL)
            frames += await to_its_end(socket)
            assert framed(frames) == [*(chunks(ONE) if when == "after one" else []), "cancel {}"]
        await nothing_follows(socket)
        if when != "at once":
            async with asyncio.timeout(0.5):
                await closed.wait()
            record = await gateway.record()
            assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


async def test_a_cancel_that_finds_nothing_to_stop_says_nothing(tmp_path: Path) -> None:
    async with session(streaming(ONE, STOP), tmp_path) as (socket, gateway, _):
        await socket.send(CANCEL)
        await socket.send(REQUEST)
        assert framed(await to_its_end(socket)) == [*chunks(ONE, STOP), "done {}"]
        await socket.send(CANCEL)
        await nothing_follows(socket)
    assert gateway.records[0].end_state is EndState.COMPLETED


@pytest.mark.parametrize("way", ["close", "abort"])
@pytest.mark.parametrize("script", [silent, open_ended], ids=["before the first event", "mid-stream"])
async def test_a_client_that_leaves_closes_its_upstream(script: Script, way: str, tmp_path: Path) -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def watched(peer: Peer) -> None:
        asked.set()
        await script(peer)
        closed.set()

    async with session(watched, tmp_path) as (socket, gateway, _):
        await socket.send(REQUEST)
        await asked.wait()
        if script is open_ended:
            await socket.recv()
        if way == "close":
            await socket.close()
        else:
            socket.transport.abort()
        async with asyncio.timeout(0.5):
            await closed.wait()
        record = await gateway.record()
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


async def test_a_drain_ends_a_stage_with_cancel_and_closes_the_socket(tmp_path: Path) -> None:
    async with session(open_ended, tmp_path, server="port: 0\ndrain: 20ms") as (socket, gateway, _):
        await socket.send(REQUEST)
        first = str(await socket.recv())
        draining = asyncio.create_task(gateway.gateway.drain())
        assert framed([first, *await to_its_end(socket)]) == [*chunks(ONE), "cancel {}"]
        await draining
        with pytest.raises(websockets.ConnectionClosedOK):
            await socket.recv()
        assert socket.close_code == 1001
    assert gateway.records[0].end_state is EndState.DRAINED


async def test_silence_is_broken_with_pings_and_the_socket_lives(tmp_path: Path) -> None:
    async def late(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(OK_EVENTS, chunk(ONE + STOP), LAST_CHUNK)

    async with session(late, tmp_path, "keepalive: 20ms") as (socket, _, _):
        await socket.send(REQUEST)
        assert framed(await to_its_end(socket)) == [*chunks(ONE, STOP), "done {}"]


async def test_a_slow_reader_pauses_its_upstream_and_gets_every_frame(tmp_path: Path) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(OK_EVENTS)
        for number in range(1000):
            await peer.send(chunk(content(f"{number}-" + "x" * 16_000)))
            sent = number
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with session(script, tmp_path) as (socket, gateway, _):
        socket.transport.pause_reading()
        await socket.send(REQUEST)
        before = -1
        while sent != before or not sent:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 999
        socket.transport.resume_reading()
        frames = await to_its_end(socket)
    assert [json.loads(frame)["id"] for frame in frames] == [f"s-chunk-{number}" for number in range(1002)]
    assert gateway.records[0].end_state is EndState.COMPLETED


async def test_a_key_is_asked_for_at_the_upgrade(tmp_path: Path) -> None:
    routes = "server: {port: 0}\nroutes: {m: 'demo://?tokens=1&first=1ms'}\nauth: {keys: [{name: web, key: sk-web}]}\n"
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    async with served(routes, tmp_path) as gateway:
        refused = await ask(gateway.port, get(PATHS[0], *upgrade), "GET")
        assert refused.status == 401
        assert list(json.loads(refused.body)) == ["detail"]
        async with websockets.connect(
            gateway.ws_url + PATHS[0], additional_headers={"Authorization": "Bearer sk-web"}
        ) as socket:
            await socket.send(REQUEST)
            assert (await to_its_end(socket))[-1].startswith('{"event":"done"')
        assert (await gateway.record(1)).key == "web"
