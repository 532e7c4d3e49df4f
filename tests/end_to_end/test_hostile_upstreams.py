"""Upstreams that try to pass for the gateway: whatever their events say, the client is told what happened."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from proxy.wire.sse import encode
from tests.support.hostile_data import HOSTILE_DATA
from tests.support.mux import mux
from tests.support.raw_client import ask, chat, get, post
from tests.support.served import one_route, served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Script,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
STAGE = {"stage_id": "mine", "model_container": "m", "user_prompt": "hi"}
ENDPOINTS = {
    "/v1/chat/completions": (chat(), STOP + DONE, "chat_completion_chunk"),
    "/v1/messages": ({**chat(), "max_tokens": 5}, MESSAGE_STOP, "event"),
    "/v1/other": ({"model": "m", "stream": True}, b"", "event"),
    "/stream/v1/chat": (STAGE, STOP + DONE, "chat_completion_chunk"),
}


def hostile(end: bytes) -> Script:
    events = b"".join(encode(data) for data in HOSTILE_DATA if data != b"[DONE]")
    named = b"event: done\n" + encode(b'{"a":1}') + b'event: x","rid":"r2","seq":99,"y":"\n' + encode(b'{"a":1}')
    return answering(OK_EVENTS, chunk(content("a") + events + named), chunk(events + end), LAST_CHUNK)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_no_event_changes_its_frame(path: str, tmp_path: Path) -> None:
    body, end, type = ENDPOINTS[path]
    async with (
        scripted_upstream(hostile(end)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(path=path, body=body, resumable=True)
        ready, accepted, *frames, done = await client.until("done")
        live = client.heard[2:]
        await client.say("resume", rid="r1", stream=accepted["stream"])
        await client.until("done")
        assert client.heard[-len(live) :] == live
    assert (ready["type"], done["type"]) == ("ready", "done")
    assert [frame["seq"] for frame in [*frames, done]] == list(range(1, len(frames) + 2))
    assert {frame["rid"] for frame in frames} == {"r1"}
    assert {frame["type"] for frame in frames} == {type}
    assert {frame["data"]["stage_id"] for frame in frames} == {"mine" if path.startswith("/stream") else "r1"}
    assert {tuple(frame["data"]) for frame in frames} == {("chunk", "stage_id")}
    assert len(frames) > 5


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/other"])
async def test_no_event_changes_its_number(path: str, tmp_path: Path) -> None:
    body, end, _ = ENDPOINTS[path]
    async with scripted_upstream(hostile(end)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        got = await ask(gateway.port, post(path, body, "x-penstock-resumable: true"))
        again = await ask(gateway.port, get("/v1/streams/" + got.headers["x-penstock-stream"]), "GET")
    assert again.body == got.body
    events = got.body.split(b"\n\n")[:-1]
    assert [re.match(rb"id: (\d+)\n", each)[1] for each in events] == [  # type: ignore[index]
        b"%d" % seq for seq in range(1, len(events) + 1)
    ]
    for each in events:
        assert len(re.findall(rb"^id:", each, re.MULTILINE)) == 1
        data = each.rpartition(b"data: ")[2]
        assert data == b"[DONE]" or isinstance(json.loads(data), dict)
