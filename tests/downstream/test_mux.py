"""The mux dialect, frame by frame, as an independent client sees it: one connection's rules."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import websockets
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from proxy.downstream import mux as mux_session
from proxy.downstream.mux_outlet import MuxOutlet
from proxy.telemetry.record import EndState
from tests.support.mux import MuxClient, content_of, mux
from tests.support.raw_client import chat, get, raw_client
from tests.support.served import Served, one_route, served
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

    from tests.support.upstream import ScriptedUpstream

ONE, TWO = content("one"), content("two")
KEYS = 'auth: {keys: [{name: web, key: sk-canary-w3b}, {name: other, key: sk-canary-0th3r, models: ["x"]}]}\n'
DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"


def streaming(*events: bytes) -> Script:
    return answering(OK_EVENTS, chunk(b"".join(events)), LAST_CHUNK)


async def held(peer: Peer) -> None:
    """One event, and then nothing until the gateway has had enough."""
    await peer.request()
    await peer.send(OK_EVENTS, chunk(ONE))
    await peer.closed()


@asynccontextmanager
async def session(
    script: Script, tmp_path: Path, *settings: str, server: str = "port: 0", more: str = ""
) -> AsyncIterator[tuple[MuxClient, Served, ScriptedUpstream]]:
    """A mux socket to a gateway whose only replica plays `script`."""
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, *settings, server=server) + more, tmp_path) as gateway,
        mux(gateway) as client,
    ):
        yield client, gateway, upstream


# ---- a request ----


async def test_a_chat_is_ready_accepted_chunks_and_done(tmp_path: Path) -> None:
    async with session(streaming(ROLE + ONE + TWO + STOP + DONE), tmp_path) as (client, gateway, upstream):
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


async def test_usage_that_was_counted_is_told_at_the_end(tmp_path: Path) -> None:
    usage = event(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}')
    async with session(streaming(ONE + STOP + usage + DONE), tmp_path) as (client, _, _):
        await client.start()
        *_, done = await client.ended()
    assert done["data"] == {"stage_id": "r1", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


async def test_named_events_keep_their_names(tmp_path: Path) -> None:
    delta = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'
    named = b"event: content_block_delta\ndata: " + delta + b"\n\n"
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    async with session(streaming(named + event(delta) + stop), tmp_path) as (client, _, _):
        await client.start(path="/v1/messages", body={**chat(), "max_tokens": 5})
        frames = await client.ended()
    assert [(frame["type"], frame.get("event"), frame.get("seq")) for frame in frames] == [
        ("accepted", None, None),
        ("event", "content_block_delta", 1),
        ("event", "content_block_delta", 2),
        ("event", "message_stop", 3),
        ("done", None, 4),
    ]
    assert frames[1]["data"]["chunk"] == json.loads(delta)


async def test_events_of_an_unknown_protocol_may_be_anything(tmp_path: Path) -> None:
    events = event(b"hello") + b'event: x"y\ndata: {"a":1}\n\n' + event(b'{"a":"\xff"}') + DONE
    async with session(streaming(events), tmp_path) as (client, _, upstream):
        await client.start(path="/v1/other", body={"model": "m"})
        _, first, second, third, done = await client.ended()
    assert (first["data"]["chunk"], first["event"]) == ({"raw": "hello"}, "message")
    assert (second["data"]["chunk"], second["event"]) == ({"a": 1}, 'x"y')
    assert third["data"]["chunk"] == {"raw": '{"a":"\\xff"}'}
    assert (done["type"], done["seq"]) == ("done", 4)
    assert json.loads(upstream.requests[0].body) == {"model": "m"}


@pytest.mark.parametrize("size", [1, 200_000], ids=["small", "large"])
async def test_no_stream_is_one_result(size: int, tmp_path: Path) -> None:
    body = json.dumps({"choices": [], "text": "é" * size}, ensure_ascii=False).encode()
    async with session(answering(answer(200, body)), tmp_path) as (client, gateway, upstream):
        await client.start(body={**chat(), "stream": False})
        accepted, result, done = await client.ended()
        record = await gateway.record()
    assert accepted["type"] == "accepted"
    assert (result["type"], result["seq"], result["data"]["result"]) == ("result", 1, json.loads(body))
    assert (done["type"], done["seq"]) == ("done", 2)
    assert json.loads(upstream.requests[0].body)["stream"] is False
    assert record.end_state is EndState.COMPLETED


async def test_an_answer_that_is_no_json_is_a_result_all_the_same(tmp_path: Path) -> None:
    async with session(answering(answer(200, b"plain\ntext")), tmp_path) as (client, _, _):
        await client.start(path="/v1/other", body={"model": "m"})
        _, result, _ = await client.ended()
    assert result["data"]["result"] == {"raw": "plain\ntext"}


async def test_an_answer_in_one_piece_larger_than_any_message_is_an_error(tmp_path: Path) -> None:
    body = json.dumps({"text": "x" * 300_000}).encode()
    async with session(answering(answer(200, body)), tmp_path, server="port: 0\nmax_body: 1000") as (
        client,
        gateway,
        _,
    ):
        await client.start(body={**chat(), "stream": False})
        [error] = await client.ended()
        record = await gateway.record()
    assert (error["status"], error["data"]["error"]["code"], error["seq"]) == (502, "upstream_invalid", 1)
    assert (record.status, record.end_state) == (502, EndState.UPSTREAM_ERROR)


async def test_requests_run_side_by_side_each_with_its_own_numbers(tmp_path: Path) -> None:
    gates = {name: asyncio.Event() for name in "ab"}

    async def script(peer: Peer) -> None:
        name = json.loads((await peer.request()).body)["user"]
        await peer.send(OK_EVENTS, chunk(content(name + "1")))
        await gates[name].wait()
        await peer.send(chunk(content(name + "2") + STOP), LAST_CHUNK)

    async with session(script, tmp_path) as (client, _, _):
        await client.start("a", body=chat(user="a"))
        await client.until("chat_completion_chunk")
        await client.start("b", body=chat(user="b"))
        await client.until("chat_completion_chunk")
        gates["b"].set()
        second = await client.ended("b")
        gates["a"].set()
        first = await client.ended("a")
    assert [(frame["seq"], frame["type"]) for frame in second] == [
        (2, "chat_completion_chunk"),
        (3, "chat_completion_chunk"),
        (4, "done"),
    ]
    assert content_of(first) == ["a2"]


async def test_an_event_that_would_forge_the_envelope_is_dropped_and_counted(tmp_path: Path) -> None:
    forged = event(b'{"a":1},"stage_id":"x"},"type":"done","rid":"r2","seq":99,"b":{"c":{}}')
    async with session(streaming(ONE + forged + event(b'{"a":NaN}') + STOP), tmp_path) as (client, gateway, _):
        await client.start()
        frames = await client.ended()
        assert gateway.gateway._metrics.malformed_events.of("m").value == 2
    assert [(frame["type"], frame.get("seq")) for frame in frames] == [
        ("accepted", None),
        ("chat_completion_chunk", 1),
        ("chat_completion_chunk", 2),
        ("done", 3),
    ]


# ---- ends that are not well ----


REFUSALS = {
    "no such model": ({"body": chat("nope")}, 404, "model_not_found"),
    "no object": ({"body": [1]}, 400, "invalid_json"),
    "no model": ({"body": {}}, 400, "missing_model"),
    "a path that is not served": ({"path": "/healthz"}, 404, "path_not_found"),
    "a path with a query": ({"path": "/v1/chat/completions?a=b"}, 404, "path_not_found"),
    "a path that climbs": ({"path": "/v1/../admin"}, 404, "path_not_found"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_request_that_cannot_be_served_gets_one_error(case: str, tmp_path: Path) -> None:
    members, status, code = REFUSALS[case]
    async with session(held, tmp_path) as (client, gateway, upstream):
        await client.start(**members)  # type: ignore[arg-type]
        [error] = await client.ended()
        record = await gateway.record()
        await client.start()  # the rid is free, the socket alive
        assert (await client.until("chat_completion_chunk"))[-1]["seq"] == 1
    assert (error["type"], error["seq"], error["status"]) == ("error", 1, status)
    assert error["data"]["error"]["code"] == code
    assert error["data"]["stage_id"] == "r1"
    assert (record.status, record.end_state, record.dialect) == (status, EndState.REJECTED, "mux")
    assert len(upstream.requests) == 1


async def test_an_upstreams_refusal_is_passed_on_with_its_status_and_when_to_retry(tmp_path: Path) -> None:
    body = b'{"error":{"message":"slow down","type":"rate","code":"busy","param":null,"extra":1}}'
    async with session(answering(answer(429, body, b"Retry-After: 7")), tmp_path) as (client, gateway, _):
        await client.start()
        [error] = await client.ended()
        record = await gateway.record()
    assert error["data"]["error"] == json.loads(body)["error"]
    assert (error["status"], error["retry_after_ms"], error["seq"]) == (429, 7000, 1)
    assert (record.status, record.end_state) == (429, EndState.UPSTREAM_REJECTED)


async def test_nobody_there_is_a_502(tmp_path: Path) -> None:
    async with served(one_route("http://127.0.0.1:9"), tmp_path) as gateway, mux(gateway) as client:
        await client.start()
        [error] = await client.ended()
    assert (error["status"], error["data"]["error"]["code"]) == (502, "upstream_unreachable")


async def test_an_answer_that_breaks_off_ends_with_one_error(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE), chunk(b"data: {"))
        peer.reset()

    async with session(script, tmp_path) as (client, gateway, _):
        await client.start()
        _, first, error = await client.ended()
        record = await gateway.record()
        assert await client.is_silent()
    assert (first["seq"], error["seq"], error["status"]) == (1, 2, 502)
    assert error["data"]["error"]["code"] == "upstream_truncated"
    assert record.end_state is EndState.UPSTREAM_TRUNCATED


async def test_an_upstreams_error_event_is_the_end_and_no_chunk(tmp_path: Path) -> None:
    failure = event(b'{"error":{"message":"out of memory","code":500}}')
    async with session(streaming(ONE + failure), tmp_path) as (client, gateway, _):
        await client.start()
        _, first, error = await client.ended()
        record = await gateway.record()
    assert content_of([first]) == ["one"]
    assert (error["seq"], error["status"]) == (2, 500)
    assert error["data"]["error"] == {"message": "out of memory", "code": 500}
    assert record.end_state is EndState.UPSTREAM_ERROR


async def test_a_failed_response_is_an_event_of_its_own_and_then_an_error(tmp_path: Path) -> None:
    delta = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
    failed = b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"message":"no"}}}\n\n'
    async with session(streaming(delta + failed), tmp_path) as (client, _, _):
        await client.start(path="/v1/responses", body={"model": "m", "input": "x"})
        frames = await client.ended()
    assert [frame.get("event") for frame in frames[1:3]] == ["response.output_text.delta", "response.failed"]
    assert (frames[3]["type"], frames[3]["seq"], frames[3]["data"]["error"]) == ("error", 3, {"message": "no"})


# ---- cancel ----


async def test_cancel_stops_the_request_at_once(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await held(peer)
        left.set()

    async with session(script, tmp_path) as (client, gateway, _):
        await client.start()
        await client.until("chat_completion_chunk")
        await client.say("cancel", rid="r1")
        async with asyncio.timeout(0.1):
            await left.wait()
        [cancelled] = await client.ended()
        record = await gateway.record()
        await client.start()
        assert (await client.until("accepted"))[-1]["rid"] == "r1"
    assert cancelled == {"data": {"stage_id": "r1", "reason": "client"}, "type": "cancel", "rid": "r1", "seq": 2}
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


async def test_cancel_before_the_answer_is_the_only_frame(tmp_path: Path) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        left.set()

    async with session(script, tmp_path) as (client, gateway, _):
        await client.start()
        await asked.wait()
        await client.say("cancel", rid="r1")
        async with asyncio.timeout(0.1):
            await left.wait()
        [cancelled] = await client.ended()
        record = await gateway.record()
    assert (cancelled["type"], cancelled["seq"]) == ("cancel", 1)
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_cancel_of_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    async with session(held, tmp_path) as (client, _, _):
        await client.say("cancel", rid="r1")
        await client.say("ping", t=1)
        assert [frame["type"] for frame in await client.until("pong")] == ["ready", "pong"]


async def test_a_client_that_leaves_takes_its_requests_along(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await held(peer)
        left.set()

    async with session(script, tmp_path) as (client, gateway, _):
        await client.start()
        await client.until("chat_completion_chunk")
        client.socket.transport.abort()
        async with asyncio.timeout(0.1):
            await left.wait()
        await gateway.record(1)
    assert {record.path: record.end_state for record in gateway.records} == {
        "/v1/chat/completions": EndState.CLIENT_CLOSED,
        "/v1/ws": EndState.CLIENT_CLOSED,
    }


# ---- the connection's rules ----


async def test_init_is_answered_with_what_both_can_do(tmp_path: Path) -> None:
    settings = "port: 0\nwebsocket: {ping: 20s, age: none, streams: 3, detach: 5s, replay: 7s}"
    async with session(held, tmp_path, server=settings) as (client, _, _):
        await client.say("init", v=1, features=["ndjson", "colour", "ack"])
        ready = await client.hear()
        assert (ready["type"], ready["features"], ready["heartbeat_s"]) == ("ready", ["ack", "ndjson"], 20)
        assert ready["limits"] == {
            "streams": 3,
            "message_bytes": 33554432,
            "age_s": None,
            "detach_s": 5,
            "replay_s": 7,
        }
        await client.say("init", v=1)
        again = await client.hear()
        assert (again["type"], again["status"]) == ("error", 400)


async def test_a_live_rid_is_not_to_be_had_twice(tmp_path: Path) -> None:
    async with session(held, tmp_path) as (client, _, upstream):
        await client.start()
        await client.until("chat_completion_chunk")
        await client.start()
        [error] = await client.until("error")
        await client.say("cancel", rid="r1")
        [cancelled] = await client.ended()
    assert (error["status"], error["data"]["error"]["code"], error["about"]) == (409, "rid_in_use", "r1")
    assert "rid" not in error
    assert "seq" not in error
    assert cancelled["seq"] == 2
    assert len(upstream.requests) == 1


async def test_one_stream_too_many_is_refused(tmp_path: Path) -> None:
    async with session(held, tmp_path, server="port: 0\nwebsocket: {streams: 2}") as (client, gateway, _):
        await client.start("a")
        await client.until("chat_completion_chunk")
        await client.start("b")
        await client.until("chat_completion_chunk")
        await client.start("c")
        [error] = await client.ended("c")
        record = await gateway.record()
        await client.say("cancel", rid="a")
        await client.ended("a")
        await client.start("c")
        assert (await client.until("accepted"))[-1]["rid"] == "c"
    assert (error["status"], error["data"]["error"]["code"], error["seq"]) == (429, "too_many_streams", 1)
    assert record.end_state is EndState.SHED


async def test_three_bad_messages_close_the_socket(tmp_path: Path) -> None:
    async with session(held, tmp_path) as (client, _, _):
        for message in ("{", '{"type":"start","rid":"r1","path":"/v1/x"}', '{"type":"nothing"}'):
            await client.socket.send(message)
        assert await client.closed() == (4400, "invalid_request")
    errors = [json.loads(text) for text in client.heard]
    assert [error["status"] for error in errors] == [400, 400, 400]
    assert [error.get("about") for error in errors] == [None, "r1", None]
    assert not any("rid" in error for error in errors)


async def test_two_bad_messages_do_not(tmp_path: Path) -> None:
    async with session(streaming(ONE + STOP), tmp_path) as (client, _, _):
        await client.socket.send("[]")
        await client.socket.send("")
        await client.start()
        assert (await client.until("done"))[-1]["seq"] == 3


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

    async with session(endless, tmp_path, server="port: 0\nmax_body: 1000") as (client, gateway, _):
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


async def test_a_fault_of_ours_closes_with_1011_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_log: pytest.LogCaptureFixture
) -> None:
    def broken(outlet: object) -> bool:
        raise RuntimeError("a canary in the mine")

    monkeypatch.setattr(MuxOutlet, "clogged", property(broken))
    async with session(held, tmp_path) as (client, gateway, _):
        await client.say("ping")
        assert await client.closed() == (1011, "internal_error")
        record = await gateway.record()
    assert record.end_state is EndState.ERROR
    assert "a canary in the mine" in quiet_log.text
    assert "canary" not in "".join(client.heard)
    quiet_log.clear()


async def test_pings_are_answered_in_kind(tmp_path: Path) -> None:
    async with session(held, tmp_path) as (client, _, _):
        pong = await client.socket.ping()
        await asyncio.wait_for(pong, 1)
        await client.say("ping", t="x")
        assert (await client.until("pong"))[-1] == {"type": "pong", "t": "x"}
        await client.say("pong", t=7)
        await client.say("ping")
        assert (await client.until("pong"))[-1] == {"type": "pong", "t": None}


async def test_silence_is_broken_by_a_ping_that_pages_can_see_and_traffic_is_not(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        for _ in range(10):
            await peer.send(chunk(ONE))
            await asyncio.sleep(0.02)
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with session(script, tmp_path, server="port: 0\nwebsocket: {ping: 80ms}") as (client, _, _):
        ping = await client.hear()
        assert ping["type"] == "ping"
        assert isinstance(ping["t"], int)
        await client.say("pong", t=ping["t"])
        await client.start()
        assert "ping" not in [frame["type"] for frame in await client.until("done")]


async def test_a_session_that_is_old_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with session(script, tmp_path, server="port: 0\nwebsocket: {age: 60ms}") as (client, _, _):
        await client.start()
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
    async with session(held, tmp_path, server="port: 0\nwebsocket: {age: 30ms}") as (client, _, _):
        assert await client.closed() == (1012, "age")
    assert json.loads(client.heard[-1])["type"] == "goaway"


async def test_a_drain_is_told_lets_streams_finish_and_closes_with_1001(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await go_on.wait()
        await peer.send(chunk(STOP), LAST_CHUNK)

    async with session(script, tmp_path, server="port: 0\ndrain: 20s") as (client, gateway, _):
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
    async with session(held, tmp_path, server="port: 0\ndrain: 50ms") as (client, gateway, _):
        await client.start(resumable=True)
        await client.until("chat_completion_chunk")
        draining = asyncio.create_task(gateway.gateway.drain())
        *_, error = await client.ended()
        assert await client.closed() == (1001, "draining")
        await draining
    assert (error["status"], error["data"]["error"]["code"], error["seq"]) == (503, "draining", 2)
    assert gateway.records[0].end_state is EndState.DRAINED


# ---- who it is ----


async def test_a_key_may_come_with_init(tmp_path: Path, quiet_log: pytest.LogCaptureFixture) -> None:
    async with session(streaming(ONE + STOP), tmp_path, more=KEYS) as (client, gateway, _):
        await client.say("init", v=1, auth={"bearer": "sk-canary-w3b"})
        assert (await client.hear())["type"] == "ready"
        await client.start()
        await client.ended()
        record = await gateway.record()
    assert record.key == "web"
    assert "canary" not in "".join(client.heard) + repr(gateway.records) + quiet_log.text


@pytest.mark.parametrize(
    "first",
    [
        {"type": "init", "v": 1, "auth": {"bearer": "sk-canary-wrong"}},
        {"type": "init", "v": 1},
        {"type": "start", "rid": "r1", "path": "/v1/chat/completions", "body": chat()},
        {"type": "resume", "rid": "r1", "stream": "s_x"},
        {"type": "ping"},
    ],
)
async def test_without_a_key_nothing_is_served(first: dict[str, object], tmp_path: Path) -> None:
    async with session(held, tmp_path, more=KEYS) as (client, _, upstream):
        await client.socket.send(json.dumps(first))
        assert await client.closed() == (4401, "invalid_api_key")
        [error] = client.heard
        assert upstream.connections == 0
    assert (json.loads(error)["status"], "canary" in error) == (401, False)


async def test_init_must_come_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux_session, "INIT_WITHIN_S", 0.05)
    async with session(held, tmp_path, more=KEYS) as (client, _, _):
        assert await client.closed() == (4408, "request_timeout")
    assert json.loads(client.heard[0])["status"] == 408


async def test_a_key_shown_at_the_upgrade_needs_no_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux_session, "INIT_WITHIN_S", 0.02)
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


async def test_a_stage_is_a_stage_here_too(tmp_path: Path) -> None:
    body = {"stage_id": 'st "2"', "model_container": "m", "user_prompt": "hi"}
    async with session(streaming(ROLE + ONE + STOP + DONE), tmp_path) as (client, gateway, _):
        await client.start(path="/stream/v1/chat", body=body)
        _, *chunks, done = await client.ended()
        await client.start(path="/stream/v1/chat", body={})
        [refused] = await client.ended()
        record = await gateway.record()
    assert [frame["seq"] for frame in chunks] == [1, 2, 3]
    assert content_of(chunks) == ["", "one"]
    assert {frame["data"]["stage_id"] for frame in [*chunks, done]} == {'st "2"'}
    assert {frame["type"] for frame in chunks} == {"chat_completion_chunk"}
    assert (done["type"], done["seq"], done["rid"]) == ("done", 4, "r1")
    assert (refused["type"], refused["status"]) == ("error", 422)
    assert (record.path, record.dialect, record.end_state) == ("/stream/v1/chat", "mux", EndState.COMPLETED)


async def test_a_client_that_floods_and_does_not_read_is_not_listened_to(tmp_path: Path) -> None:
    async with session(held, tmp_path) as (client, gateway, _):
        client.socket.transport.pause_reading()
        [connection] = [
            each for runner in gateway.gateway._runners if runner.server for each in runner.server.connections
        ]
        message = json.dumps({"type": "ping", "t": "x" * 250})

        async def flood() -> None:
            while True:
                await client.socket.send(message)

        flooding = asyncio.create_task(flood())
        done, _pending = await asyncio.wait([flooding], timeout=0.3)
        assert not done
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1024 * 1024
        flooding.cancel()
        client.socket.transport.resume_reading()
        await client.until("pong")


async def test_a_window_nobody_acknowledges_does_not_hold_the_drain_up(tmp_path: Path) -> None:
    async with session(streaming(ONE + TWO + STOP), tmp_path) as (client, gateway, _):
        await client.say("init", v=1, features=["ack"])
        await client.start(window=1)
        await client.until("chat_completion_chunk")
        draining = asyncio.create_task(gateway.gateway.drain())
        assert await client.closed() == (1001, "draining")
        await draining
