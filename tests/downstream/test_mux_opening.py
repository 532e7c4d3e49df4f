"""What differs from endpoint to endpoint: which events a client gets, under which names, and how an end is told."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.mux import Frame, content_of, mux
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
    chunk,
    content,
    event,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.telemetry.record import RequestRecord

CHAT = "/v1/chat/completions"
STAGE = {"stage_id": "st", "model_container": "m", "user_prompt": "hi"}
ONE = content("one")


def streaming(*events: bytes) -> Script:
    return answering(OK_EVENTS, chunk(b"".join(events)), LAST_CHUNK)


async def asked(
    script: Script, tmp_path: Path, path: str, body: object
) -> tuple[list[Frame], RequestRecord, dict[str, object]]:
    """The frames a request gets, its record, and what the upstream was asked."""
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(path=path, body=body)
        frames = await client.ended()
        return frames, await gateway.record(), json.loads(upstream.requests[0].body)


@pytest.mark.parametrize(
    ("path", "body", "sent"),
    [
        (CHAT, {"model": "m"}, True),
        (CHAT, {"model": "m", "stream": None}, True),
        (CHAT, {"model": "m", "stream": False}, False),
        ("/v1/messages", {"model": "m"}, True),
        ("/v1/embeddings", {"model": "m", "input": "x"}, None),
    ],
)
async def test_where_streams_are_known_one_is_asked_for_unless_the_client_says_no(
    path: str, body: object, sent: bool | None, tmp_path: Path
) -> None:
    _, _, request = await asked(answering(answer(200, b'{"a":1}')), tmp_path, path, body)
    assert request.get("stream") is sent


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


@pytest.mark.parametrize(
    ("header", "told_ms"), [(b"3", 3000), (b"0", 0), (b"Wed, 21 Oct 2026 07:28:00 GMT", None), (b"soon", None)]
)
async def test_when_to_retry_is_told_where_it_is_a_number(header: bytes, told_ms: int | None, tmp_path: Path) -> None:
    refusing = answering(answer(400, b'{"error":{"message":"no"}}', b"Retry-After: " + header))
    [error], _, _ = await asked(refusing, tmp_path, CHAT, chat())
    assert (error["status"], error.get("retry_after_ms")) == (400, told_ms)


async def test_a_refusal_without_words_gets_some(tmp_path: Path) -> None:
    [error], record, _ = await asked(answering(answer(418, b"<html>")), tmp_path, CHAT, chat())
    assert (error["status"], error["data"]["error"]["message"]) == (418, "The model server answered with status 418.")
    assert record.status == 418


async def test_a_failure_under_status_200_is_a_refusal(tmp_path: Path) -> None:
    failing = answering(answer(200, b'{"error":{"message":"no","code":503}}'))
    [error], record, _ = await asked(failing, tmp_path, CHAT, chat())
    assert (error["status"], error["seq"], error["data"]["error"]["message"]) == (503, 1, "no")
    assert record.end_state is EndState.UPSTREAM_ERROR


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


async def test_an_upstreams_refusal_of_a_stage_keeps_its_status(tmp_path: Path) -> None:
    refusing = answering(answer(429, b'{"error":{"message":"slow down"}}', b"Retry-After: 7"))
    [error], record, _ = await asked(refusing, tmp_path, "/stream/v1/chat", STAGE)
    assert (error["status"], error["retry_after_ms"], error["data"]["error"]["message"]) == (429, 7000, "slow down")
    assert record.status == 429


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
        async with asyncio.timeout(0.1):
            await left.wait()
        record = await gateway.record()
        assert await client.is_silent()
    assert (cancelled["seq"], cancelled["data"]) == (2, {"stage_id": "st", "reason": "client"})
    assert record.end_state is EndState.CLIENT_CLOSED
