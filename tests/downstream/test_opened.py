"""Which events of an answer a client gets, under which names, and how its end is told."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.mux import asked, content_of, mux, mux_session, streaming
from tests.support.raw_client import chat
from tests.support.served import one_route, served
from tests.support.upstream import (
    DONE,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    answer,
    answering,
    chunk,
    content,
    event,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path


ONE, TWO = content("one"), content("two")
CHAT = "/v1/chat/completions"
STAGE = {"stage_id": "st", "model_container": "m", "user_prompt": "hi"}
SOON_S = 2.0


async def test_usage_that_was_counted_is_told_at_the_end(tmp_path: Path) -> None:
    usage = event(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}')
    async with mux_session(streaming(ONE + STOP + usage + DONE), tmp_path) as (client, _, _):
        await client.start()
        *_, done = await client.ended()
    assert done["data"] == {"stage_id": "r1", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


async def test_named_events_keep_their_names(tmp_path: Path) -> None:
    delta = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'
    named = b"event: content_block_delta\ndata: " + delta + b"\n\n"
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    async with mux_session(streaming(named + event(delta) + stop), tmp_path) as (client, _, _):
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
    async with mux_session(streaming(events), tmp_path) as (client, _, upstream):
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
    async with mux_session(answering(answer(200, body)), tmp_path) as (client, gateway, upstream):
        await client.start(body={**chat(), "stream": False})
        accepted, result, done = await client.ended()
        record = await gateway.record()
    assert accepted["type"] == "accepted"
    assert (result["type"], result["seq"], result["data"]["result"]) == ("result", 1, json.loads(body))
    assert (done["type"], done["seq"]) == ("done", 2)
    assert json.loads(upstream.requests[0].body)["stream"] is False
    assert record.end_state is EndState.COMPLETED


async def test_an_answer_that_is_no_json_is_a_result_all_the_same(tmp_path: Path) -> None:
    async with mux_session(answering(answer(200, b"plain\ntext")), tmp_path) as (client, _, _):
        await client.start(path="/v1/other", body={"model": "m"})
        _, result, _ = await client.ended()
    assert result["data"]["result"] == {"raw": "plain\ntext"}


async def test_an_event_that_would_forge_the_envelope_is_dropped_and_counted(tmp_path: Path) -> None:
    forged = event(b'{"a":1},"stage_id":"x"},"type":"done","rid":"r2","seq":99,"b":{"c":{}}')
    async with mux_session(streaming(ONE + forged + event(b'{"a":NaN}') + STOP), tmp_path) as (client, gateway, _):
        await client.start()
        frames = await client.ended()
        assert gateway.gateway._metrics.malformed_events.of("m").value == 2
    assert [(frame["type"], frame.get("seq")) for frame in frames] == [
        ("accepted", None),
        ("chat_completion_chunk", 1),
        ("chat_completion_chunk", 2),
        ("done", 3),
    ]


async def test_an_upstreams_error_event_is_the_end_and_no_chunk(tmp_path: Path) -> None:
    failure = event(b'{"error":{"message":"out of memory","code":500}}')
    async with mux_session(streaming(ONE + failure), tmp_path) as (client, gateway, _):
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
    async with mux_session(streaming(delta + failed), tmp_path) as (client, _, _):
        await client.start(path="/v1/responses", body={"model": "m", "input": "x"})
        frames = await client.ended()
    assert [frame.get("event") for frame in frames[1:3]] == ["response.output_text.delta", "response.failed"]
    assert (frames[3]["type"], frames[3]["seq"], frames[3]["data"]["error"]) == ("error", 3, {"message": "no"})


async def test_an_answer_that_breaks_off_ends_with_one_error(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE), chunk(b"data: {"))
        peer.reset()

    async with mux_session(script, tmp_path) as (client, gateway, _):
        await client.start()
        _, first, error = await client.ended()
        record = await gateway.record()
        assert await client.is_silent()
    assert (first["seq"], error["seq"], error["status"]) == (1, 2, 502)
    assert error["data"]["error"]["code"] == "upstream_truncated"
    assert record.end_state is EndState.UPSTREAM_TRUNCATED


@pytest.mark.parametrize(
    ("path", "body", "usage"),
    [
        (CHAT, {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}, {"prompt_tokens": 3, "completion_tokens": 2}),
        ("/v1/messages", {"usage": {"input_tokens": 3, "output_tokens": 2}}, {"input_tokens": 3, "output_tokens": 2}),
        (CHAT, {"a": 1}, None),
    ],
)
async def test_the_end_tells_the_counts_in_the_protocols_words(
    path: str, body: object, usage: object, tmp_path: Path
) -> None:
    whole = answering(answer(200, json.dumps(body).encode()))
    frames, _, _ = await asked(whole, tmp_path, path, {"model": "m", "stream": False})
    assert frames[-1]["data"].get("usage") == usage


async def test_a_text_about_errors_is_no_failure(tmp_path: Path) -> None:
    about = event(b'{"choices":[{"delta":{"content":"\\"error\\""}}],"error":null}')
    frames, _, _ = await asked(streaming(ONE, about, STOP, DONE), tmp_path, CHAT, chat())
    assert content_of(frames) == ["one", '"error"']


@pytest.mark.parametrize("stage_id", ["st", 'quoted "id"', "ümlaut", "\\"])
async def test_a_stages_chunks_are_the_upstreams(stage_id: str, tmp_path: Path) -> None:
    frames, record, _ = await asked(
        streaming(ROLE, ONE, STOP, DONE), tmp_path, "/stream/v1/chat", {**STAGE, "stage_id": stage_id}
    )
    assert [frame["data"]["chunk"] for frame in frames[1:-1]] == [json.loads(each[6:]) for each in (ROLE, ONE, STOP)]
    assert {frame["data"]["stage_id"] for frame in frames[1:]} == {stage_id}
    assert (frames[-1]["type"], record.end_state) == ("done", EndState.COMPLETED)


async def test_a_stages_chunk_cannot_speak_for_the_stage(tmp_path: Path) -> None:
    forged = event(b'{"a":1},"stage_id":"forged","b":{}')
    frames, _, _ = await asked(streaming(ONE, forged, STOP), tmp_path, "/stream/v1/chat", STAGE)
    assert {frame["data"]["stage_id"] for frame in frames[1:]} == {"st"}
    assert [frame["seq"] for frame in frames[1:]] == [1, 2, 3]


async def test_a_stage_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        peer.reset()

    frames, record, _ = await asked(script, tmp_path, "/stream/v1/chat", STAGE)
    assert [frame.get("seq") for frame in frames] == [None, 1, 2]
    assert (frames[-1]["status"], frames[-1]["data"]["error"]["code"]) == (502, "upstream_truncated")
    assert record.end_state is EndState.UPSTREAM_TRUNCATED


async def test_a_stages_error_event_is_its_end(tmp_path: Path) -> None:
    failing = streaming(ONE, event(b'{"error":{"message":"out of memory"}}'))
    frames, _, _ = await asked(failing, tmp_path, "/stream/v1/chat", STAGE)
    assert [frame["type"] for frame in frames] == ["accepted", "chat_completion_chunk", "error"]
    assert frames[-1]["data"]["error"]["message"] == "out of memory"


async def test_a_cancelled_stage_says_so_once(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await peer.closed()
        left.set()

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(path="/stream/v1/chat", body=STAGE)
        await client.until("chat_completion_chunk")
        await client.say("cancel", rid="r1")
        [cancelled] = await client.ended()
        async with asyncio.timeout(SOON_S):
            await left.wait()
        record = await gateway.record()
        assert await client.is_silent()
    assert (cancelled["seq"], cancelled["data"]) == (2, {"stage_id": "st", "reason": "client"})
    assert record.end_state is EndState.CLIENT_CLOSED
