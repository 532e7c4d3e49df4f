"""The requests of one session, side by side: begun under a `rid`, stopped, waiting, and how many there may be."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from websockets.frames import Frame, Opcode

from proxy import admission
from proxy.downstream.mux import MuxSession
from proxy.telemetry.record import EndState, Phase
from tests.support.mux import MuxClient, content_of, held, mux, mux_session
from tests.support.raw_client import chat
from tests.support.served import Served, one_route, served
from tests.support.tool_servers import with_quick_tools
from tests.support.upstream import (
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Peer,
    ScriptedUpstream,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ONE, TWO = content("one"), content("two")
SOON_S = 2.0
"""Longer than the 100 ms that are promised, for a machine that is busy."""


async def test_requests_run_side_by_side_each_with_its_own_numbers(tmp_path: Path) -> None:
    gates = {name: asyncio.Event() for name in "ab"}

    async def script(peer: Peer) -> None:
        name = json.loads((await peer.request()).body)["user"]
        await peer.send(OK_EVENTS, chunk(content(name + "1")))
        await gates[name].wait()
        await peer.send(chunk(content(name + "2") + STOP), LAST_CHUNK)

    async with mux_session(script, tmp_path) as (client, _, _):
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


async def test_cancel_stops_the_request_at_once(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await held(peer)
        left.set()

    async with mux_session(script, tmp_path) as (client, gateway, _):
        await client.start()
        await client.until("chat_completion_chunk")
        await client.say("cancel", rid="r1")
        async with asyncio.timeout(SOON_S):
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

    async with mux_session(script, tmp_path) as (client, gateway, _):
        await client.start()
        await asked.wait()
        await client.say("cancel", rid="r1")
        async with asyncio.timeout(SOON_S):
            await left.wait()
        [cancelled] = await client.ended()
        record = await gateway.record()
    assert (cancelled["type"], cancelled["seq"]) == ("cancel", 1)
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_cancel_of_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, _, _):
        await client.say("cancel", rid="r1")
        await client.say("ping", t=1)
        assert [frame["type"] for frame in await client.until("pong")] == ["ready", "pong"]


async def test_a_client_that_leaves_takes_its_requests_along(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await held(peer)
        left.set()

    async with mux_session(script, tmp_path) as (client, gateway, _):
        await client.start()
        await client.until("chat_completion_chunk")
        client.socket.transport.abort()
        async with asyncio.timeout(SOON_S):
            await left.wait()
        await gateway.record(1)
    assert {record.path: record.end_state for record in gateway.records} == {
        "/v1/chat/completions": EndState.CLIENT_CLOSED,
        "/v1/ws": EndState.CLIENT_CLOSED,
    }


async def test_a_live_rid_is_not_to_be_had_twice(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, _, upstream):
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
    async with mux_session(held, tmp_path, server="port: 0\nwebsocket: {streams: 2}") as (client, gateway, _):
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


# ---- in the same read ----


def together(*messages: dict[str, object]) -> bytes:
    """Messages as one packet."""
    return b"".join(Frame(Opcode.TEXT, json.dumps(each).encode()).serialize(mask=True) for each in messages)


def start_of(rid: str, **members: object) -> dict[str, object]:
    return {"type": "start", "rid": rid, "path": "/v1/chat/completions", "body": chat(), **members}


async def test_a_cancel_in_the_same_read_leaves_a_record_and_asks_nobody(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, gateway, upstream):
        client.socket.transport.write(together(start_of("r1"), {"type": "cancel", "rid": "r1"}))
        [cancelled] = await client.ended()
        record = await gateway.record()
        assert upstream.connections == 0
        assert not gateway.gateway._turns._tasks
    assert (cancelled["type"], cancelled["seq"]) == ("cancel", 1)
    assert (record.path, record.status, record.end_state) == ("/v1/chat/completions", 499, EndState.CLIENT_CLOSED)


async def test_a_close_in_the_same_read_leaves_a_record_too(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, gateway, _):
        close = Frame(Opcode.CLOSE, (1000).to_bytes(2)).serialize(mask=True)
        client.socket.transport.write(together(start_of("r1", resumable=True)) + close)
        await gateway.record(1)
    assert {record.path for record in gateway.records} == {"/v1/chat/completions", "/v1/ws"}


async def test_a_request_that_is_not_begun_takes_no_place_and_leaves_a_record(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path, server="port: 0\nwebsocket: {streams: 1}") as (client, gateway, upstream):
        client.socket.transport.write(together(start_of("a"), *[start_of(f"b{number}") for number in range(20)]))
        for number in range(20):
            [refused] = await client.ended(f"b{number}")
            assert (refused["status"], refused["seq"]) == (429, 1)
        [session] = gateway.gateway._websockets._sessions
        assert isinstance(session, MuxSession)
        assert list(session._channels._open) == ["a"]
        assert len(gateway.gateway._turns._tasks) == 1
    assert [record.status for record in gateway.records[:20]] == [429] * 20
    assert len(upstream.requests) <= 1


async def test_a_body_is_not_held_by_the_channel_once_it_was_sent(tmp_path: Path) -> None:
    async with mux_session(held, tmp_path) as (client, gateway, _):
        await client.start()
        await client.until("chat_completion_chunk")
        [task] = gateway.gateway._turns._tasks
        frame = task.get_coro().cr_frame  # type: ignore[union-attr]
        assert frame is not None
        assert frame.f_locals["self"]._body == b""


# ---- in the queue ----

ONE_AT_ONCE = "limits: {streams: 1, queue: 10}"
STAGE = {"stage_id": "st", "model_container": "m", "user_prompt": "hi"}
ROUTES = {
    "a chat": ("/v1/chat/completions", chat()),
    "a whole chat": ("/v1/chat/completions", {**chat(), "stream": False}),
    "a chat whose tools we run": ("/v1/chat/completions", chat(tools="gateway")),
    "a stage": ("/stream/v1/chat", STAGE),
    "a stage with tools": ("/stream/v1/toolchain", STAGE),
}


@asynccontextmanager
async def full_route(tmp_path: Path, *more: str) -> AsyncIterator[tuple[MuxClient, Served, ScriptedUpstream]]:
    """A session whose request `r1` has the only place of its route."""
    async with scripted_upstream(held) as upstream:
        routes = with_quick_tools(one_route(upstream.url, ONE_AT_ONCE, *more))
        async with served(routes, tmp_path) as gateway, mux(gateway) as client:
            await client.start("r1")
            await client.until("chat_completion_chunk")
            yield client, gateway, upstream


def waiting(gateway: Served) -> int:
    return gateway.gateway._relay.table.find("m", None).limiter.waiting


@pytest.mark.parametrize("kind", ROUTES)
async def test_who_waits_is_told_its_place_before_it_is_accepted(kind: str, tmp_path: Path) -> None:
    path, body = ROUTES[kind]
    async with full_route(tmp_path, "tools: [bench.echo]") as (client, gateway, _):
        await client.start("r2", path=path, body=body)
        assert await client.hear() == {"type": "queued", "rid": "r2", "position": 1}
        assert waiting(gateway) == 1
        await client.say("cancel", rid="r1")
        await client.ended("r1")
        if kind != "a whole chat":  # which this model server never ends
            assert (await client.until("accepted"))[-1]["rid"] == "r2"
        assert [json.loads(text)["type"] for text in client.heard].count("queued") == 1


async def test_a_place_is_told_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "TOLD_EVERY_S", 0.01)
    async with full_route(tmp_path) as (client, _, _):
        for rid in ("r2", "r3"):
            await client.start(rid)
        places = [await client.hear(), await client.hear()]
        await client.say("cancel", rid="r2")
        cancelled, moved = await client.hear(), await client.hear()
        assert await client.is_silent()
    assert [(frame["rid"], frame["position"]) for frame in places] == [("r2", 1), ("r3", 2)]
    assert (cancelled["type"], cancelled["rid"]) == ("cancel", "r2")
    assert (moved["type"], moved["rid"], moved["position"]) == ("queued", "r3", 1)


async def test_a_client_that_cancels_in_the_queue_is_gone_from_it_at_once(tmp_path: Path) -> None:
    async with full_route(tmp_path) as (client, gateway, upstream):
        await client.start("r2")
        await client.until("queued")
        await client.say("cancel", rid="r2")
        [cancelled] = await client.ended("r2")
        record = await gateway.record()
        assert waiting(gateway) == 0
        assert len(upstream.requests) == 1
    assert (cancelled["type"], cancelled["seq"]) == ("cancel", 1)
    assert (record.end_state, record.phase) == (EndState.CLIENT_CLOSED, Phase.QUEUE)


@pytest.mark.parametrize("way", ["lost", "closed"])
async def test_a_client_whose_socket_goes_is_gone_from_the_queue_at_once(way: str, tmp_path: Path) -> None:
    async with full_route(tmp_path) as (_, gateway, upstream), mux(gateway) as other:
        await other.start("r2", resumable=True)
        await other.until("queued")
        if way == "lost":
            other.socket.transport.abort()
        else:
            await other.socket.close()
        async with asyncio.timeout(SOON_S):
            while waiting(gateway):
                await asyncio.sleep(0.001)
        await gateway.record(1)
        assert len(upstream.requests) == 1
        [record] = [each for each in gateway.records if not each.is_session]
    assert (record.end_state, record.phase) == (EndState.CLIENT_CLOSED, Phase.QUEUE)


async def test_who_is_refused_in_the_queue_is_told_after_its_place(tmp_path: Path) -> None:
    async with full_route(tmp_path) as (client, gateway, _):
        limiter = gateway.gateway._relay.table.find("m", None).limiter
        limiter.rules = replace(limiter.rules, queue_timeout_s=0.05)
        await client.start("r2")
        place, refused = await client.hear(), await client.hear()
    assert place["type"] == "queued"
    assert (refused["type"], refused["status"], refused["seq"]) == ("error", 503, 1)
    assert refused["data"]["error"]["code"] == "queue_timeout"
