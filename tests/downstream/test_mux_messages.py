"""What a client may say when, who it is, and what is too much."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.access import patience
from proxy.access.keys import KeyEntry, Keyring
from proxy.downstream.websocket import INIT_BYTES
from proxy.routing.table import RoutingTable
from proxy.telemetry.record import EndState
from proxy.wire.mux import MOST_RESUMED
from tests.support.mux import held, mux_session, streaming
from tests.support.raw_client import chat
from tests.support.upstream import (
    STOP,
    content,
)

if TYPE_CHECKING:
    from pathlib import Path


ONE, TWO = content("one"), content("two")
KEYS = 'auth: {keys: [{name: web, key: sk-canary-w3b}, {name: other, key: sk-canary-0th3r, models: ["x"]}]}\n'


async def test_init_is_answered_with_what_both_can_do(tmp_path: Path) -> None:
    settings = "port: 0\nwebsocket: {ping: 20s, age: none, streams: 3, detach: 5s, replay: 7s}"
    async with mux_session(held, tmp_path, server=settings) as (client, _, _):
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


async def test_three_bad_messages_close_the_socket(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, _, _):
        for message in ("{", '{"type":"start","rid":"r1","path":"/v1/x"}', '{"type":"nothing"}'):
            await client.socket.send(message)
        assert await client.closed() == (4400, "invalid_request")
    errors = [json.loads(text) for text in client.heard]
    assert [error["status"] for error in errors] == [400, 400, 400]
    assert [error.get("about") for error in errors] == [None, "r1", None]
    assert not any("rid" in error for error in errors)


async def test_two_bad_messages_do_not(tmp_path: Path) -> None:
    async with mux_session(streaming(ONE + STOP), tmp_path) as (client, _, _):
        await client.socket.send("[]")
        await client.socket.send("")
        await client.start()
        assert (await client.until("done"))[-1]["seq"] == 3


async def test_pings_are_answered_in_kind(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, _, _):
        pong = await client.socket.ping()
        await asyncio.wait_for(pong, 1)
        await client.say("ping", t="x")
        assert (await client.until("pong"))[-1] == {"type": "pong", "t": "x"}
        await client.say("pong", t=7)
        await client.say("ping")
        assert (await client.until("pong"))[-1] == {"type": "pong", "t": None}


async def test_a_key_may_come_with_init(tmp_path: Path, quiet_log: pytest.LogCaptureFixture) -> None:
    async with mux_session(streaming(ONE + STOP), tmp_path, more=KEYS) as (client, gateway, _):
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
    async with mux_session(held, tmp_path, more=KEYS) as (client, _, upstream):
        await client.socket.send(json.dumps(first))
        assert await client.closed() == (4401, "invalid_api_key")
        [error] = client.heard
        assert upstream.connections == 0
    assert (json.loads(error)["status"], "canary" in error) == (401, False)


async def test_a_key_that_is_good_for_nothing_here_is_told_so(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, more=KEYS) as (client, _, _):
        await client.say("init", v=1, auth={"bearer": "sk-canary-0th3r"})
        assert await client.closed() == (4403, "model_not_allowed")
    [error] = map(json.loads, client.heard)
    assert (error["type"], error["status"], "rid" in error) == ("error", 403, False)


@pytest.mark.parametrize("then", ["start", "resume"])
async def test_a_key_that_is_taken_back_ends_the_session_at_its_next_request(then: str, tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, more=KEYS) as (client, gateway, _):
        await client.say("init", v=1, auth={"bearer": "sk-canary-w3b"})
        await client.start()
        await client.until("chat_completion_chunk")
        relay = gateway.gateway._relay
        relay.table = RoutingTable(relay.table.routes, Keyring([KeyEntry.from_key("new", "sk-n3w")]))
        await client.say("ping")
        await client.until("pong")
        if then == "start":
            await client.start("r2")
        else:
            await client.say("resume", rid="r2", stream="s_x")
        assert await client.closed() == (4401, "invalid_api_key")
        record = await gateway.record()
    assert json.loads(client.heard[-1])["status"] == 401
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_what_is_said_before_anybody_knows_who_says_it_is_short(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, more=KEYS) as (client, _, _):
        await client.say("init", v=1, auth={"bearer": "x" * INIT_BYTES})
        assert await client.closed() == (1009, "message_too_large")
    assert client.heard == []


async def test_behind_an_init_anything_may_be_as_long_as_any(tmp_path: Path) -> None:
    long = chat(user="x" * 3 * INIT_BYTES)
    async with mux_session(streaming(ONE + STOP), tmp_path, more=KEYS) as (client, _, upstream):
        init = json.dumps({"type": "init", "v": 1, "auth": {"bearer": "sk-canary-w3b"}})
        start = json.dumps({"type": "start", "rid": "r1", "path": "/v1/chat/completions", "body": long})
        await asyncio.gather(client.socket.send(init), client.socket.send(start))
        await client.until("done")
        assert len(upstream.requests[0].body) > 3 * INIT_BYTES


async def test_an_init_resumes_no_more_than_so_many(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, _, _):
        resuming = [{"rid": f"r{number}", "stream": "s_x"} for number in range(MOST_RESUMED + 1)]
        await client.say("init", v=1, resume=resuming)
        refused = await client.hear()
        assert (refused["status"], "resume" in refused["data"]["error"]["message"]) == (400, True)
        await client.say("init", v=1, resume=resuming[1:])
        answers = [await client.hear() for _ in range(1 + MOST_RESUMED)]
    assert answers[0]["type"] == "ready"
    assert {answer["status"] for answer in answers[1:]} == {404}


VAIN: dict[str, dict[str, object]] = {
    "pings": {"type": "ping"},
    "pongs": {"type": "pong", "t": 1},
    "cancels of nothing": {"type": "cancel", "rid": "r9"},
    "acks of nothing": {"type": "ack", "rid": "r9", "seq": 1},
    "acks of what has not come": {"type": "ack", "rid": "r1", "seq": 99},
    "resumptions of nothing": {"type": "resume", "rid": "r9", "stream": "s_x"},
    "requests under a live rid": {"type": "start", "rid": "r1", "path": "/v1/x", "body": {}},
    "requests beyond the limit": {"type": "start", "rid": "r2", "path": "/v1/x", "body": {}},
}


@pytest.mark.parametrize("kind", VAIN)
async def test_a_flood_of_what_leads_to_nothing_ends_the_session(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "IDLE_A_MINUTE", 60)
    async with mux_session(held, tmp_path, server="port: 0\nwebsocket: {streams: 1}") as (client, gateway, _):
        await client.say("init", v=1, features=["ack"])
        await client.start()
        await client.until("chat_completion_chunk")
        message = json.dumps(VAIN[kind])
        with suppress(websockets.ConnectionClosed):
            for _ in range(200):
                await client.socket.send(message)
        assert await client.closed() == (4429, "too_many_messages")
        record = next(each for each in gateway.records if each.status == 499)
    last = json.loads(client.heard[-1])
    assert (last["type"], last["status"], last["data"]["error"]["code"]) == ("error", 429, "too_many_messages")
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_what_leads_to_something_is_no_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "IDLE_A_MINUTE", 1)
    words = b"".join(content(f"w{number}") for number in range(100))
    async with mux_session(streaming(words + STOP), tmp_path) as (client, _, _):
        await client.say("init", v=1, features=["ack"])
        await client.start(window=1)
        for seq in range(1, 102):
            while (await client.hear()).get("seq") != seq:
                pass
            await client.say("ack", rid="r1", seq=seq)
        assert (await client.hear())["type"] == "done"
