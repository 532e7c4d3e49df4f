"""A session of Responses' WebSocket mode: its lanes and limits, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from websockets.frames import Frame, Opcode

from proxy.downstream import responses
from proxy.telemetry.record import EndState
from tests.support.raw_client import raw_client
from tests.support.responses import (
    Gated,
    ResponsesClient,
    completed,
    create,
    created,
    delta,
    eventually,
    give,
    responses_session,
)
from tests.support.served import one_route, served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, Peer, answering, chunk, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = answering(OK_EVENTS, chunk(created() + delta() + completed()), LAST_CHUNK)


def kinds(frames: list[Any]) -> list[str]:
    return [frame["type"] for frame in frames]


# ---- lanes ----


async def test_lanes_run_side_by_side_and_each_in_its_order(tmp_path: Path) -> None:
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(create("a1", stream_id="a"), create("a2", stream_id="a"), create("b1", stream_id="b"))
        await client.send(create("n1"), create("n2"))
        await eventually(lambda: len(gated.begun) == 3)
        assert sorted(gated.begun) == ["a1", "b1", "n1"]
        gated.let("a1", "a2", "b1", "n1", "n2")
        frames: list[Any] = []
        while kinds(frames).count("response.completed") < 5:
            frames.append(await client.frame())
    for lane, expected in (("a", ["resp_a1", "resp_a2"]), ("b", ["resp_b1"]), (None, ["resp_n1", "resp_n2"])):
        own = [frame for frame in frames if frame.get("stream_id") == lane]
        assert kinds(own) == ["response.created", "response.output_text.delta", "response.completed"] * len(expected)
        assert [frame["response"]["id"] for frame in own if frame["type"] == "response.completed"] == expected


async def test_a_second_request_in_a_lane_waits_for_the_first_and_goes_on_from_it(tmp_path: Path) -> None:
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(create("one"), create("two", previous_response_id="resp_one"))
        await client.until("response.output_text.delta")
        assert await client.silent()
        assert gated.begun == ["one"]
        gated.let("one", "two")
        assert kinds(await client.answer()) == ["response.completed"]
        assert kinds(await client.answer())[-1] == "response.completed"
        assert [item["role"] for item in client.asked()["input"]] == ["user", "assistant", "user"]
        await client.gateway.record(1)
    assert client.gateway.records[0].queue_ms < client.gateway.records[1].queue_ms


async def test_the_seventeenth_waits_until_one_of_sixteen_has_ended(tmp_path: Path) -> None:
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(*(create(f"p{number}", stream_id=f"lane{number}") for number in range(18)))
        for _ in range(16):
            await client.until("response.output_text.delta")
        assert await client.silent()
        assert sorted(gated.begun) == sorted(f"p{number}" for number in range(16))
        gated.let("p5")
        await client.until("response.completed")
        begun = (await client.until("response.output_text.delta"))[-1]
        assert (begun["stream_id"], gated.begun[-1]) == ("lane16", "p16")
        assert await client.silent()


async def test_the_thirty_third_named_lane_is_refused_and_the_others_live(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path) as client:
        for number in range(32):
            await client.ask(stream_id=f"lane{number}")
        [refused] = await client.ask(stream_id="lane32")
        assert (refused["status"], refused["error"]["code"]) == (400, "websocket_stream_limit_reached")
        assert (refused["error"]["param"], refused["stream_id"]) == ("stream_id", "lane32")
        assert kinds(await client.ask(stream_id="lane0"))[-1] == "response.completed"
        assert kinds(await client.ask())[-1] == "response.completed"
        assert len(client.upstream.requests) == 34


async def test_more_than_may_wait_is_refused_and_what_waits_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "WAITING", 1)
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(create("one"))
        await client.until("response.output_text.delta")
        await client.send(create("two"), create("three"))
        refused = await client.frame()
        assert (refused["status"], refused["error"]["code"]) == (429, "queue_full")
        gated.let("one", "two")
        await client.answer()
        assert (await client.answer())[-1]["response"]["id"] == "resp_two"


async def test_a_failure_in_one_lane_leaves_the_others_alone(tmp_path: Path) -> None:
    gated = Gated()

    async def script(peer: Peer) -> None:
        if upstream_breaks.is_set():
            await peer.request()
            await peer.send(OK_EVENTS, chunk(created() + delta()))
            peer.reset()
        else:
            await gated(peer)

    upstream_breaks = asyncio.Event()
    async with responses_session(script, tmp_path) as client:
        await client.send(create("x", stream_id="a"))
        await client.until("response.output_text.delta")
        upstream_breaks.set()
        broken = await client.ask(stream_id="b")
        assert (broken[-1]["type"], broken[-1]["stream_id"]) == ("response.failed", "b")
        gated.let("x")
        assert [(frame["type"], frame["stream_id"]) for frame in await client.answer()] == [("response.completed", "a")]


async def test_a_request_that_waits_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "IN_FLIGHT", 1)
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(create("one", stream_id="a"))
        await client.until("response.output_text.delta")
        await client.send(create("two", stream_id="b"), '{"type":"response.cancel","stream_id":"b"}')
        refused = await client.frame()
        assert (refused["status"], refused["error"]["code"], refused["stream_id"]) == (499, "cancelled", "b")
        gated.let("one", "three")
        assert kinds(await client.answer()) == ["response.completed"]
        assert kinds(await client.ask("three", stream_id="b"))[-1] == "response.completed"
        assert gated.begun == ["one", "three"]
        assert (await client.gateway.record()).end_state is EndState.CLIENT_CLOSED


# ---- messages ----


@pytest.mark.parametrize(
    ("message", "code", "lane"),
    [
        ("{canary", "invalid_json", {}),
        ('{"model":"m","input":"canary"}', "invalid_request", {}),
        ('{"type":"response.steer","input":"canary"}', "invalid_request", {}),
        ('{"type":"canary","stream_id":"a"}', "invalid_request", {"stream_id": "a"}),
        ('{"type":"response.create","stream_id":""}', "invalid_stream_id", {}),
    ],
)
async def test_what_is_no_message_gets_a_400_and_the_socket_lives(
    message: str, code: str, lane: dict[str, str], tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    async with responses_session(WHOLE, tmp_path) as client:
        for _ in range(5):
            await client.send(message)
            frame = await client.frame()
            assert {name: frame[name] for name in frame if name != "error"} == {"type": "error", "status": 400, **lane}
            assert (frame["error"]["type"], frame["error"]["code"]) == ("invalid_request_error", code)
            assert "canary" not in json.dumps(frame) + quiet_log.text
        assert kinds(await client.ask())[-1] == "response.completed"


async def test_the_nested_form_is_served(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path) as client:
        await client.send(json.dumps({"type": "response.create", "response": {"model": "m", "input": "hi"}}))
        assert kinds(await client.answer())[-1] == "response.completed"
        assert client.asked() == {"model": "m", "input": "hi", "stream": True}


async def test_nothing_is_said_of_our_own_accord_but_pings(tmp_path: Path) -> None:
    async def late(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await give(peer, created(), delta(), completed())

    server = "port: 0\nwebsocket: {ping: 20ms}"
    async with responses_session(late, tmp_path, "keepalive: 15ms", server=server) as client:
        await asyncio.wait_for(await client.socket.ping(), 1)
        frames = await client.ask()
    assert kinds(frames) == ["response.created", "response.output_text.delta", "response.completed"]


# ---- who may connect ----

KEY = "sk-test-0123456789abcdef"
KEYED = f"""
server: {{port: 0}}
routes: {{m: 'demo://?tokens=2&interval=1ms&first=1ms', n: 'demo://'}}
auth: {{keys: [{{name: team, key: {KEY}, models: [m]}}]}}
"""


async def test_a_key_is_asked_for_before_the_upgrade_and_its_models_hold_in_every_request(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        url = gateway.ws_url + "/v1/responses"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url)
        assert refused.value.response.status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            scripted_upstream(WHOLE) as upstream,
            websockets.connect(url, additional_headers=headers) as socket,
        ):
            client = ResponsesClient(socket, gateway, upstream)
            assert kinds(await client.ask())[-1] == "response.completed"
            [forbidden] = await client.ask(model="n")
            assert forbidden["status"] in (403, 404)
        record = await gateway.record(1)
    assert (record.key, record.dialect) == ("team", "responses")


async def test_a_browsers_key_may_come_as_a_subprotocol(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        offered = [websockets.Subprotocol(f"openai-insecure-api-key.{KEY}"), websockets.Subprotocol("realtime")]
        async with websockets.connect(gateway.ws_url + "/v1/responses", subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime"
            await socket.send(create())
            assert json.loads(await socket.recv())["type"] == "response.created"


# ---- ends ----


@pytest.mark.parametrize(
    ("message", "code"),
    [(b"binary", 1003), ("x" * 2000, 1009), ([b"\xff\xfe"], 1007)],
    ids=["binary", "too large", "no UTF-8"],
)
async def test_a_message_that_breaks_the_rules_closes_the_socket_and_stops_what_runs(
    message: str | bytes | list[bytes], code: int, tmp_path: Path
) -> None:
    async with responses_session(Gated(), tmp_path, server="port: 0\nmax_body: 1000") as client:
        await client.send(create("one", stream_id="a"), create("two", stream_id="a"))
        await client.until("response.output_text.delta")
        await client.socket.send(message, text=True if isinstance(message, list) else None)
        assert (await client.closed())[0] == code
        await client.gateway.record(2)
    assert [record.end_state for record in client.gateway.records[:2]] == [EndState.CLIENT_CLOSED] * 2


async def test_an_unmasked_frame_is_a_protocol_error(tmp_path: Path) -> None:
    upgrade = (
        b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with served(one_route("demo://"), tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(upgrade)
        assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
        await client.send(Frame(Opcode.TEXT, create().encode()).serialize(mask=False))
        assert (await client.rest()).endswith(b"\x88\x0a" + (1002).to_bytes(2) + b"unmasked")


AGED = "port: 0\nwebsocket: {age: 300ms}"


async def test_an_old_connection_is_told_so_and_closed(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path, server=AGED) as client:
        await client.ask()
        frame = await client.frame()
        assert (frame["type"], frame["status"]) == ("error", 400)
        assert frame["error"]["code"] == "websocket_connection_limit_reached"
        assert await client.closed() == (1000, "websocket_connection_limit_reached")


async def test_an_old_connection_lets_what_runs_and_waits_end_and_takes_nothing_new(tmp_path: Path) -> None:
    gated = Gated()
    async with responses_session(gated, tmp_path, server=AGED) as client:
        await client.send(create("one", stream_id="a"), create("two", stream_id="a"))
        await client.until("response.output_text.delta")
        assert await client.silent(0.4)
        await client.send(create("three", stream_id="b"))
        refused = await client.frame()
        assert (refused["status"], refused["stream_id"]) == (400, "b")
        assert refused["error"]["code"] == "websocket_connection_limit_reached"
        gated.let("one", "two")
        assert kinds(await client.answer()) == ["response.completed"]
        assert kinds(await client.answer())[-1] == "response.completed"
        assert (await client.frame())["error"]["code"] == "websocket_connection_limit_reached"
        assert (await client.closed())[0] == 1000
    assert gated.begun == ["one", "two"]


async def test_a_connection_without_an_age_stays(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path, server="port: 0\nwebsocket: {age: none}") as client:
        assert await client.silent()
        assert kinds(await client.ask())[-1] == "response.completed"


async def test_a_drain_lets_responses_finish_refuses_the_next_and_closes_with_1001(tmp_path: Path) -> None:
    gated = Gated()
    async with responses_session(gated, tmp_path) as client:
        await client.send(create("one", stream_id="a"), create("waits", stream_id="a"))
        await client.until("response.output_text.delta")
        draining = asyncio.create_task(client.gateway.gateway.drain())
        await asyncio.sleep(0)
        [refused] = await client.ask("two")
        assert (refused["status"], refused["error"]["code"]) == (503, "draining")
        assert refused["headers"] == {"retry-after": "1"}
        gated.let("one")
        assert kinds(await client.answer()) == ["response.completed"]
        [refused] = await client.answer()
        assert (refused["status"], refused["stream_id"]) == (503, "a")
        assert await client.closed() == (1001, "draining")
        await asyncio.wait_for(draining, 2)


async def test_the_drains_deadline_is_a_failed_response_and_then_1001(tmp_path: Path) -> None:
    async with responses_session(Gated(), tmp_path, server="port: 0\ndrain: 50ms") as client:
        await client.send(create("one"))
        await client.until("response.output_text.delta")
        draining = asyncio.create_task(client.gateway.gateway.drain())
        [last] = await client.answer()
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "draining")
        assert await client.closed() == (1001, "draining")
        await draining
    assert client.gateway.records[0].end_state is EndState.DRAINED


async def test_a_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    async with responses_session(WHOLE, tmp_path) as client:
        for _ in range(50):
            await client.send(*(create(stream_id=f"lane{number}") for number in range(20)))
            frames: list[str] = []
            while frames.count("response.completed") < 20:
                frames.append((await client.frame())["type"])
        await client.gateway.record(999)
        assert client.gateway.gateway._relay.in_flight().total() == 0
        assert [task for task in asyncio.all_tasks() if "Response" in repr(task.get_coro())] == []
