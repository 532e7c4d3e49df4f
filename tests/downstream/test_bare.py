"""The bare dialect, frame by frame, as an independent client sees it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import websockets
from websockets.frames import Frame, Opcode

from proxy.access import patience
from proxy.downstream import client_socket, session_socket
from proxy.downstream.bare import BareSession
from proxy.downstream.spoken_outlet import UNREAD_BYTES
from proxy.telemetry.record import EndState
from tests.support.raw_client import chat
from tests.support.served import one_route, served
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
    answering_once,
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

SMALL = "port: 0\nmax_body: 1000"
REQUEST = json.dumps(chat())
ONE = content("one")


@asynccontextmanager
async def session(
    script: Script, tmp_path: Path, *settings: str, path: str = "/v1/ws", server: str = "port: 0"
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


def data(*events: bytes) -> list[str]:
    return [each[6:-2].decode() for each in events]


async def until_done(socket: websockets.ClientConnection) -> list[str]:
    """The frames of one answer, `[DONE]` or the error at its end among them."""
    frames: list[str] = []
    async with asyncio.timeout(5):
        while not frames or not (frames[-1] == "[DONE]" or '"status":' in frames[-1]):
            frames.append(str(await socket.recv()))
    return frames


ANSWERS: dict[str, tuple[bytes, list[str]]] = {
    "with [DONE]": (ROLE + ONE + STOP + DONE, [*data(ROLE, ONE, STOP), "[DONE]"]),
    "without [DONE]": (ROLE + ONE + STOP, [*data(ROLE, ONE, STOP), "[DONE]"]),
    "with [DONE] in the text": (content("[DONE]") + STOP + DONE, [*data(content("[DONE]"), STOP), "[DONE]"]),
    "blank after [DONE]": (ONE + STOP + b"data: [DONE] \n\n", [*data(ONE, STOP), "[DONE]"]),
    "data over several lines": (
        b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n' + STOP + DONE,
        ['{"choices": [{"delta":{"content":"a"}}]}', *data(STOP), "[DONE]"],
    ),
    "CRLF": ((ONE + STOP + DONE).replace(b"\n", b"\r\n"), [*data(ONE, STOP), "[DONE]"]),
    "CR": ((ONE + STOP + DONE).replace(b"\n", b"\r"), [*data(ONE, STOP), "[DONE]"]),
    "comments, ids and names": (
        b": hello\n\nevent: chunk\nid: 7\n" + ONE + b"retry: 5\n\n" + STOP + DONE,
        [*data(ONE, STOP), "[DONE]"],
    ),
    "no blank after the colon": (ONE.replace(b"data: ", b"data:") + STOP + DONE, [*data(ONE, STOP), "[DONE]"]),
    "no UTF-8": (
        ONE + event(b'{"choices":[{"delta":{"content":"\xff"}}]}') + STOP + DONE,
        [*data(ONE), r'{"raw":"{\"choices\":[{\"delta\":{\"content\":\"\\xff\"}}]}"}', *data(STOP), "[DONE]"],
    ),
    "an event that is no JSON": (ONE + event(b"oops") + STOP + DONE, [*data(ONE, STOP), "[DONE]"]),
    "beyond ASCII": (content("über 🌊 \u2028") + STOP + DONE, [*data(content("über 🌊 \u2028"), STOP), "[DONE]"]),
    "large": (content("x" * 70_000) + STOP + DONE, [*data(content("x" * 70_000), STOP), "[DONE]"]),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_each_events_data_is_one_frame_and_the_end_is_said_once(case: str, tmp_path: Path) -> None:
    sent, frames = ANSWERS[case]
    async with session(streaming(sent), tmp_path) as (socket, gateway, _):
        for _ in range(2):  # the socket lives
            await socket.send(REQUEST)
            assert await until_done(socket) == frames
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.02)
    for record in gateway.records[:2]:
        assert (record.status, record.end_state, record.transport, record.dialect) == (200, "completed", "ws", "bare")
        assert record.bytes_in == len(REQUEST)
        assert record.bytes_out > sum(map(len, frames[:-1]))


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/ws", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/completions", "/v1/completions"),
    ],
)
@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
async def test_the_message_is_the_body_and_stream_is_taken_as_true(
    path: str, target: str, stream: dict[str, object], tmp_path: Path
) -> None:
    message = json.dumps({"model": "m", "n": 1, **stream, "x": "é"}, ensure_ascii=False)
    async with session(streaming(ONE, STOP), tmp_path, path=path) as (socket, _, upstream):
        await socket.send(message)
        await until_done(socket)
        [request] = upstream.requests
    assert request.target == target
    asked = {"stream_options": {"include_usage": True}}
    assert json.loads(request.body) == {"model": "m", "n": 1, "stream": True, "x": "é", **asked}
    assert request.body.count(b'"stream"') == 1
    assert not [line for line in request.head.lower().split(b"\r\n") if line.startswith((b"sec-", b"upgrade", b"conn"))]


async def test_ten_requests_one_after_another_on_one_socket(tmp_path: Path) -> None:
    async with session(streaming(ONE, STOP, DONE), tmp_path) as (socket, gateway, upstream):
        for _ in range(10):
            await socket.send(REQUEST)
            assert await until_done(socket) == [*data(ONE, STOP), "[DONE]"]
        assert upstream.connections == 1
    assert [record.end_state for record in gateway.records[:10]] == ["completed"] * 10
    assert len({record.request_id for record in gateway.records}) == 11
    assert gateway.records[10].status == 101


async def test_a_second_request_meanwhile_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with session(script, tmp_path) as (socket, gateway, upstream):
        await socket.send(REQUEST)
        assert await socket.recv() == data(ONE)[0]
        await socket.send(REQUEST)
        refusal = json.loads(await socket.recv())
        assert (refusal["status"], refusal["error"]["code"]) == (409, "request_in_progress")
        assert list(refusal["error"]) == ["message", "type", "param", "code"]
        go_on.set()
        assert await until_done(socket) == [*data(STOP), "[DONE]"]
        assert len(upstream.requests) == 1
    assert len(gateway.records) == 2


async def test_a_cancel_that_finds_nothing_to_stop_is_no_request(tmp_path: Path) -> None:
    async with session(streaming(ONE, STOP), tmp_path) as (socket, gateway, _):
        await socket.send('{"type":"cancel"}')
        await socket.send(REQUEST)
        assert await until_done(socket) == [*data(ONE, STOP), "[DONE]"]
        await socket.send(' { "type" : "cancel" } ')
        await socket.send(REQUEST)
        assert await until_done(socket) == [*data(ONE, STOP), "[DONE]"]
    assert len(gateway.records) == 3


REFUSALS: dict[str, tuple[str, int, str]] = {
    "no JSON": ("{canary", 400, "invalid_json"),
    "an array": ("[]", 400, "invalid_json"),
    "nothing": ("", 400, "invalid_json"),
    "no model": ('{"type":"cancelled"}', 400, "missing_model"),
    "two models": ('{"model":"m","model":"canary"}', 400, "invalid_request"),
    "unknown model": ('{"model":"canary"}', 404, "model_not_found"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_a_frame_with_a_status_and_the_socket_stays_open(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    message, status, code = REFUSALS[case]
    async with session(streaming(ONE, STOP), tmp_path) as (socket, gateway, _):
        await socket.send(message)
        frame = str(await socket.recv())
        await socket.send(REQUEST)
        assert (await until_done(socket))[-1] == "[DONE]"
    refusal = json.loads(frame)
    assert list(refusal) == ["error", "status"]
    assert list(refusal["error"]) == ["message", "type", "param", "code"]
    assert (refusal["status"], refusal["error"]["code"]) == (status, code)
    assert "canary" not in frame + quiet_log.text + repr(gateway.records)
    assert (gateway.records[0].status, gateway.records[0].end_state) == (status, EndState.REJECTED)


UNEXPLAINED_500 = {
    "message": "The model server answered with status 500.",
    "type": "upstream_error",
    "param": None,
    "code": None,
}
UPSTREAM_ANSWERS: dict[str, tuple[bytes, int, object, str]] = {
    "a 429 with an error": (
        answer(429, b'{"error":{"message":"slow down","code":"rate"}}', b"Retry-After: 1"),
        *(429, {"message": "slow down", "code": "rate"}, "upstream_rejected"),
    ),
    "a 400 with a sentence": (
        answer(400, b'{"error":"bad"}'),
        *(400, {"message": "bad", "type": "upstream_error", "param": None, "code": None}, "upstream_rejected"),
    ),
    "a 500 of HTML": (answer(500, b"<html>"), 500, UNEXPLAINED_500, "upstream_error"),
    "an error under status 200": (
        answer(200, b'{"error":{"message":"m","status":503}}'),
        *(503, {"message": "m", "status": 503}, "upstream_error"),
    ),
    "an error event first": (
        OK_EVENTS + chunk(event(b'{"error":{"message":"m"}}')) + LAST_CHUNK,
        *(502, {"message": "m"}, "upstream_error"),
    ),
}


@pytest.mark.parametrize("case", UPSTREAM_ANSWERS)
async def test_an_upstreams_error_is_passed_on_with_its_status(case: str, tmp_path: Path) -> None:
    sent, status, error, end_state = UPSTREAM_ANSWERS[case]
    async with session(answering(sent), tmp_path) as (socket, gateway, _):
        for _ in range(2):
            await socket.send(REQUEST)
            assert json.loads(await socket.recv()) == {"error": error, "status": status}
    assert [(record.status, record.end_state) for record in gateway.records[:2]] == [(status, end_state)] * 2


async def test_an_error_event_after_content_is_the_last_frame(tmp_path: Path) -> None:
    failure = event(b'{"error":{"message":"overloaded"}}')
    async with session(streaming(ONE, failure), tmp_path) as (socket, gateway, _):
        await socket.send(REQUEST)
        assert [await socket.recv(), await socket.recv()] == data(ONE, failure)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.02)
        assert gateway.records[0].end_state is EndState.UPSTREAM_ERROR


@pytest.mark.parametrize("size", [10, 200_000, 400_000])
async def test_an_answer_in_one_piece_is_one_frame(size: int, tmp_path: Path) -> None:
    body = json.dumps({"choices": [], "text": "é" * size}, ensure_ascii=False).encode()
    async with session(answering(answer(200, body)), tmp_path) as (socket, gateway, _):
        await socket.send(REQUEST)
        frames = await until_done(socket)
    assert frames == [body.decode(), "[DONE]"]
    assert gateway.records[0].end_state is EndState.COMPLETED


async def test_an_answer_in_one_piece_larger_than_any_message_is_an_error(tmp_path: Path) -> None:
    body = json.dumps({"text": "x" * 300_000}).encode()
    async with session(answering(answer(200, body)), tmp_path, server="port: 0\nmax_body: 1000") as (
        socket,
        gateway,
        _,
    ):
        await socket.send(REQUEST)
        frame = json.loads(await socket.recv())
        assert (frame["status"], frame["error"]["code"]) == (502, "upstream_invalid")
        assert gateway.records[0].end_state is EndState.UPSTREAM_ERROR


@pytest.mark.parametrize("way", ["reset", "end", "inside an event"])
async def test_an_answer_that_breaks_off_ends_with_an_error_frame_and_no_done(way: str, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await asyncio.sleep(0.02)
        match way:
            case "reset":
                peer.reset()
            case "end":
                await peer.send(LAST_CHUNK)
            case _:
                await peer.send(chunk(b"data: {"))

    async with session(script, tmp_path) as (socket, gateway, _):
        await socket.send(REQUEST)
        first, last = await until_done(socket)
        assert first == data(ONE)[0]
        assert json.loads(last)["error"]["code"] == "upstream_truncated"
        assert json.loads(last)["status"] == 502
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.02)
    assert gateway.records[0].end_state is EndState.UPSTREAM_TRUNCATED


async def test_nobody_there_is_a_502_frame(tmp_path: Path) -> None:
    async with session(answering_once(b""), tmp_path) as (socket, gateway, _):
        await socket.send(REQUEST)
        frame = json.loads(await socket.recv())
        assert (frame["status"], frame["error"]["code"]) == (502, "upstream_unreachable")
        assert gateway.records[0].end_state is EndState.UPSTREAM_ERROR


async def closing(socket: websockets.ClientConnection) -> AsyncIterator[str | bytes]:
    """The frames up to the Close frame, whatever that says."""
    try:
        async for frame in socket:
            yield frame
    except websockets.ConnectionClosedError:
        pass


async def endless(peer: Peer) -> None:
    """Content every few milliseconds until the connection is closed."""
    await peer.request()
    await peer.send(OK_EVENTS)
    while True:
        await peer.send(chunk(content("x")))
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("message", "code"),
    [(b"binary", 1003), ("x" * 2000, 1009), ([b"\xff\xfe"], 1007)],
    ids=["binary", "too large", "no UTF-8"],
)
@pytest.mark.parametrize("running", [False, True], ids=["idle", "while one runs"])
async def test_a_message_that_breaks_the_rules_closes_the_socket_and_nothing_follows(
    message: str | bytes | list[bytes], code: int, running: bool, tmp_path: Path
) -> None:
    async with session(endless, tmp_path, server="port: 0\nmax_body: 1000") as (socket, gateway, upstream):
        if running:
            await socket.send(REQUEST)
            await socket.recv()
        await socket.send(message, text=True if isinstance(message, list) else None)
        async with asyncio.timeout(2):
            async for frame in closing(socket):
                assert frame == data(content("x"))[0]
        assert socket.close_code == code
        last = await gateway.record(int(running))
        assert last.path == "/v1/ws"
        assert upstream.connections == int(running)
    if running:
        assert gateway.records[0].end_state is EndState.CLIENT_CLOSED


async def test_the_gateway_answers_pings_and_pings_itself(tmp_path: Path) -> None:
    async def late(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(OK_EVENTS, chunk(ONE + STOP), LAST_CHUNK)

    async with session(late, tmp_path, "keepalive: 20ms", server="port: 0\nwebsocket: {ping: 30ms}") as (socket, _, _):
        pong = await socket.ping()
        await asyncio.wait_for(pong, 1)
        await socket.send(REQUEST)
        assert await until_done(socket) == [*data(ONE, STOP), "[DONE]"]


async def test_a_client_that_answers_no_ping_is_left(tmp_path: Path) -> None:
    async with session(endless, tmp_path, server="port: 0\nwebsocket: {ping: 40ms}") as (socket, gateway, _):
        socket.transport.pause_reading()
        record = await gateway.record()
        assert record.duration_ms is not None
        assert record.duration_ms < 1000
        socket.transport.abort()


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
        frames = await until_done(socket)
        assert [json.loads(frame)["choices"][0]["delta"]["content"].split("-")[0] for frame in frames[:-2]] == [
            str(number) for number in range(1000)
        ]
        assert frames[-1] == "[DONE]"
    assert gateway.records[0].end_state is EndState.COMPLETED


async def test_a_reader_that_stopped_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_socket, "STALLED_S", 0.05)

    async def flood(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        while True:
            await peer.send(chunk(content("x" * 60_000)))

    async with session(flood, tmp_path) as (socket, gateway, _):
        socket.transport.pause_reading()
        await socket.send(REQUEST)
        record = await gateway.record()
        socket.transport.abort()
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_a_client_that_does_not_answer_our_close_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_socket, "CLOSE_WITHIN_S", 0.05)
    async with session(endless, tmp_path) as (socket, gateway, _):
        await socket.send(b"binary")
        socket.transport.pause_reading()
        record = await gateway.record()
        assert (record.duration_ms or 0) < 500
        socket.transport.abort()


def together(*messages: str) -> bytes:
    """Messages as one packet."""
    return b"".join(Frame(Opcode.TEXT, each.encode()).serialize(mask=True) for each in messages)


async def test_a_cancel_in_the_same_read_leaves_a_record_and_asks_nobody(tmp_path: Path) -> None:
    async with session(endless, tmp_path) as (socket, gateway, upstream):
        socket.transport.write(together(REQUEST, '{"type":"cancel"}', '{"model":"nope"}'))
        async with asyncio.timeout(5):
            assert await socket.recv() == '{"type":"cancel"}'
            assert json.loads(await socket.recv())["status"] == 404
        first, second = await gateway.record(), await gateway.record(1)
        assert upstream.connections == 0
    assert (first.status, first.end_state, first.bytes_in) == (499, EndState.CLIENT_CLOSED, len(REQUEST))
    assert first.bytes_out == 0
    assert (second.status, second.end_state) == (404, EndState.REJECTED)


async def test_a_close_in_the_same_read_leaves_a_record_too(tmp_path: Path) -> None:
    async with session(endless, tmp_path) as (socket, gateway, _):
        socket.transport.write(together(REQUEST) + Frame(Opcode.CLOSE, (1000).to_bytes(2)).serialize(mask=True))
        await gateway.record(1)
    assert [record.is_session for record in gateway.records] == [False, True]


@pytest.mark.parametrize("kind", ["second requests", "cancels of nothing"])
async def test_a_flood_of_what_leads_to_nothing_ends_the_session(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "IDLE_A_MINUTE", 60)
    async with session(endless, tmp_path) as (socket, gateway, _):
        message = '{"type":"cancel"}'
        if kind == "second requests":
            await socket.send(REQUEST)
            await socket.recv()
            message = REQUEST
        socket.transport.write(together(message) * 200)
        frames = [str(frame) async for frame in closing(socket)]
        assert (socket.close_code, socket.close_reason) == (4429, "too_many_messages")
        record = await gateway.record()
    assert (json.loads(frames[-1])["status"], json.loads(frames[-1])["error"]["code"]) == (429, "too_many_messages")
    assert record.is_session or record.end_state is EndState.CLIENT_CLOSED


async def test_a_client_that_does_not_read_what_it_is_told_is_not_listened_to(tmp_path: Path) -> None:
    async with session(endless, tmp_path) as (socket, gateway, _):
        [listening] = gateway.gateway._websockets._sessions
        assert isinstance(listening, BareSession)
        outlet = listening._outlet
        outlet._full, outlet._said_bytes = True, UNREAD_BYTES + 1
        await socket.send('{"model":"nope"}')
        await socket.send('{"model":"nope"}')
        await gateway.record()  # the one it was waiting for
        async with asyncio.timeout(5):
            while outlet._caught_up is None:
                await asyncio.sleep(0.001)
        assert len(gateway.records) == 1
        outlet._change(False)
        await gateway.record(1)
