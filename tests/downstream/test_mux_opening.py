"""Which endpoint a request reaches, what is asked of it, and how a refusal is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.mux import asked, content_of, held, mux, mux_session, streaming
from tests.support.raw_client import chat
from tests.support.served import one_route, served
from tests.support.upstream import (
    DONE,
    ROLE,
    STOP,
    answer,
    answering,
    content,
)

if TYPE_CHECKING:
    from pathlib import Path


CHAT = "/v1/chat/completions"
STAGE = {"stage_id": "st", "model_container": "m", "user_prompt": "hi"}
ONE = content("one")


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


async def test_an_upstreams_refusal_of_a_stage_keeps_its_status(tmp_path: Path) -> None:
    refusing = answering(answer(429, b'{"error":{"message":"slow down"}}', b"Retry-After: 7"))
    [error], record, _ = await asked(refusing, tmp_path, "/stream/v1/chat", STAGE)
    assert (error["status"], error["retry_after_ms"], error["data"]["error"]["message"]) == (429, 7000, "slow down")
    assert record.status == 429


REFUSALS = {
    "no such model": ({"body": chat("nope")}, 404, "model_not_found"),
    "no object": ({"body": [1]}, 400, "invalid_json"),
    "no model": ({"body": {}}, 400, "missing_model"),
    "a path that is not served": ({"path": "/healthz"}, 404, "path_not_found"),
    "a path with a query": ({"path": "/v1/chat/completions?a=b"}, 404, "path_not_found"),
    "a path that climbs": ({"path": "/v1/../admin"}, 404, "path_not_found"),
}


async def test_an_answer_in_one_piece_larger_than_any_message_is_an_error(tmp_path: Path) -> None:
    body = json.dumps({"text": "x" * 300_000}).encode()
    async with mux_session(answering(answer(200, body)), tmp_path, server="port: 0\nmax_body: 1000") as (
        client,
        gateway,
        _,
    ):
        await client.start(body={**chat(), "stream": False})
        [error] = await client.ended()
        record = await gateway.record()
    assert (error["status"], error["data"]["error"]["code"], error["seq"]) == (502, "upstream_invalid", 1)
    assert (record.status, record.end_state) == (502, EndState.UPSTREAM_ERROR)


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_request_that_cannot_be_served_gets_one_error(case: str, tmp_path: Path) -> None:
    members, status, code = REFUSALS[case]
    async with mux_session(held, tmp_path) as (client, gateway, upstream):
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
    async with mux_session(answering(answer(429, body, b"Retry-After: 7")), tmp_path) as (client, gateway, _):
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


async def test_a_stage_is_a_stage_here_too(tmp_path: Path) -> None:
    body = {"stage_id": 'st "2"', "model_container": "m", "user_prompt": "hi"}
    async with mux_session(streaming(ROLE + ONE + STOP + DONE), tmp_path) as (client, gateway, _):
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
