"""A model server dies in the middle of an answer, and the client of any dialect sees one whole answer all the same."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.clients import events_of
from tests.support.dialects import (
    BARE,
    MESSAGE_EVENTS,
    MUX,
    RESPONSE_EVENTS,
    RESPONSES_FRAMES,
    SSE,
    STAGE_EVENTS,
    STAGE_FRAMES,
    Dialect,
    ask,
)
from tests.support.raw_client import ask as ask_raw
from tests.support.raw_client import chat, get, post, raw_client
from tests.support.served import served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, Peer, Script, answering, chunk, saying, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 10.0
CONTINUED = (SSE, MESSAGE_EVENTS, STAGE_EVENTS, BARE, STAGE_FRAMES, MUX)
NOT_CONTINUED = (RESPONSE_EVENTS, RESPONSES_FRAMES)


def routes(*urls: str, settings: str = "") -> str:
    listed = ", ".join(f'"{url}"' for url in urls)
    all = f"balance: round_robin, health: none, breaker: none, on_break: continue{settings}"
    return f"server: {{port: 0}}\nroutes: {{m: {{replicas: [{listed}], {all}}}}}\n"


def dying(dialect: Dialect, *texts: str) -> Script:
    words = dialect.words
    return saying(OK_EVENTS, chunk(words.preamble + b"".join(map(words.content, texts))), end="reset")


def whole(dialect: Dialect, *texts: str) -> bytes:
    words = dialect.words
    return OK_EVENTS + chunk(words.preamble + b"".join(map(words.content, texts)) + words.end) + LAST_CHUNK


@pytest.mark.parametrize("dialect", CONTINUED, ids=lambda dialect: dialect.name)
async def test_a_broken_answer_is_whole_in_every_dialect(dialect: Dialect, tmp_path: Path) -> None:
    async with (
        scripted_upstream(dying(dialect, "one", " two")) as bad,
        scripted_upstream(answering(whole(dialect, "one t", "wo th", "ree"))) as good,
        served(routes(bad.url, good.url), tmp_path) as gateway,
    ):
        seen = await ask(gateway, dialect)
        record = await gateway.record()
        assert record.replica == 1
    assert "".join(seen.said) == "one two three"
    assert (seen.done, seen.errors) == (True, [])
    assert (record.end_state, record.continued, record.attempts) == (EndState.COMPLETED, 1, 2)


@pytest.mark.parametrize("dialect", NOT_CONTINUED, ids=lambda dialect: dialect.name)
async def test_responses_break_off_as_ever(dialect: Dialect, tmp_path: Path) -> None:
    async with (
        scripted_upstream(dying(dialect, "one")) as bad,
        scripted_upstream(answering(whole(dialect, "one two"))) as good,
        served(routes(bad.url, good.url), tmp_path) as gateway,
    ):
        seen = await ask(gateway, dialect)
        assert good.connections == 0
    assert (seen.said, seen.done) == (["one"], False)
    assert seen.error["code"] == "upstream_truncated"


async def test_the_connection_shows_signs_of_life_meanwhile(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def late(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.send(whole(SSE, "one two"))

    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(dying(SSE, "one")) as bad,
        scripted_upstream(late) as good,
        served(routes(bad.url, good.url, settings=", keepalive: 20ms"), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        await client.reader.readuntil(b'"one"')
        await client.reader.readuntil(b": ping\n")
        await client.reader.readuntil(b": ping\n")
        go_on.set()
        await client.reader.readuntil(b'" two"')
        await client.reader.readuntil(b"[DONE]")


async def test_a_stream_that_is_kept_has_the_whole_answer_under_numbers_without_a_hole(tmp_path: Path) -> None:
    async with (
        scripted_upstream(dying(SSE, "one", " two")) as bad,
        scripted_upstream(answering(whole(SSE, "one two", " three"))) as good,
        served(routes(bad.url, good.url), tmp_path) as gateway,
    ):
        asked = post("/v1/chat/completions", chat(), "x-penstock-resumable: true")
        answer = await ask_raw(gateway.port, asked)
        again = await ask_raw(gateway.port, get(f"/v1/streams/{answer.headers['x-penstock-stream']}"), "GET")
    chunks = [json.loads(data) for _, data in events_of(answer.body) if data != "[DONE]"]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks) == "one two three"
    numbers = [int(line[4:]) for line in answer.body.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events_of(again.body) == events_of(answer.body)


async def test_a_hedged_answer_says_whose_it_is(tmp_path: Path) -> None:
    async with (
        scripted_upstream(saying(end="stall")) as slow,
        scripted_upstream(answering(whole(SSE, "hello"))) as quick,
        served(routes(slow.url, quick.url, settings=", hedge: 10ms"), tmp_path) as gateway,
    ):
        answer = await ask_raw(gateway.port, post("/v1/chat/completions", chat()))
    assert (answer.headers["x-penstock-replica"], answer.headers["x-penstock-attempts"]) == ("1", "2")
    assert b"hello" in answer.body
