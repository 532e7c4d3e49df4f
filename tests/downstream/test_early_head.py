"""A head that goes out before the upstream has said anything; from then on a failure is told in the stream."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import openai
import pytest
from aiohttp import ClientConnectionError, web

from proxy.downstream.answering import stream_headers
from proxy.downstream.early_head import EarlyHead
from proxy.downstream.streamed import StreamedAnswer
from proxy.telemetry.record import EndState, RequestRecord
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.sse_streams import ANTHROPIC
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Peer,
    Script,
    answer,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_aiohttp import AiohttpClient

    from proxy.relay import Answer

KEEPALIVE = "keepalive: 30ms"
SILENCE_S = 0.08


def after_silence(*pieces: bytes, silence_s: float = SILENCE_S) -> Script:
    """A script that says nothing for a while, then these pieces."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(silence_s)
            await peer.send(*pieces)

    return script


STREAM = (OK_EVENTS, chunk(content("late") + STOP + DONE), LAST_CHUNK)


async def test_silence_before_the_first_event_sends_the_head_and_signs_of_life(tmp_path: Path) -> None:
    async with (
        scripted_upstream(after_silence(*STREAM, silence_s=0.5)) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        got = await client.answer()
        await client.send(post("/v1/chat/completions", chat()))
        again = await client.answer()
    assert (got.status, got.whole) == (200, True)
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers["x-penstock-route"] == "m"
    silence = got.body.removesuffix(content("late") + STOP + DONE)
    assert silence.startswith(b": ping\n" * 2)
    assert silence.replace(b": ping\n", b"") == b""
    assert again.body.lstrip(b": ping\n").endswith(STOP + DONE)
    assert [(record.status, record.end_state) for record in gateway.records] == [(200, EndState.COMPLETED)] * 2
    assert gateway.records[0].transport == "sse"


async def test_a_quick_failure_still_has_its_status(tmp_path: Path) -> None:
    script = after_silence(answer(429, b'{"error":{"message":"full"}}'), silence_s=0)
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        assert (await client.answer()).status == 429


async def test_a_request_that_does_not_stream_waits_for_its_status(tmp_path: Path) -> None:
    script = after_silence(answer(429, b'{"error":{"message":"full"}}'))
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat(stream=False)))
        assert (await client.answer()).status == 429


LATE: dict[str, tuple[tuple[bytes, ...], str, EndState]] = {
    "a refusal": ((answer(400, b'{"error":{"message":"too long"}}'),), "too long", EndState.UPSTREAM_REJECTED),
    "a failure": ((answer(500, b"<html>"),), "status 500", EndState.UPSTREAM_ERROR),
    "an error event": (
        (OK_EVENTS, chunk(b'data: {"error":{"message":"overloaded","code":503}}\n\n'), LAST_CHUNK),
        "overloaded",
        EndState.UPSTREAM_ERROR,
    ),
    "an error under status 200": ((answer(200, b'{"error":"sorry"}'),), "sorry", EndState.UPSTREAM_ERROR),
    "garbage": ((b"garbage\r\n\r\n",), "not HTTP", EndState.UPSTREAM_ERROR),
    "an answer in one piece": ((answer(200, b'{"choices":[]}'),), "not with an event stream", EndState.UPSTREAM_ERROR),
    "no event at all": ((OK_EVENTS, LAST_CHUNK), "before its end", EndState.UPSTREAM_TRUNCATED),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("case", LATE)
async def test_a_late_failure_is_told_in_the_stream(case: str, path: str, tmp_path: Path) -> None:
    pieces, said, end_state = LATE[case]
    async with (
        scripted_upstream(after_silence(*pieces)) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post(path, chat()))
        got = await client.answer()
        assert (got.status, got.whole) == (200, True)
        *_, last, end = got.body.split(b"\n\n")
        error = json.loads(last.partition(b"data: ")[2])
        assert end == b""
        assert said in error["error"]["message"]
        assert last.endswith(b"}}")
        assert (b"event: error" in last) == (path == "/v1/messages")
        assert b"DONE" not in got.body
        await client.send(post("/v1/embeddings", {}))  # the connection is not worse for it
        assert (await client.answer()).status == 400
    record = gateway.records[0]
    assert (record.status, record.end_state, record.transport) == (200, end_state, "sse")
    assert record.bytes_out > len(got.body)


async def test_a_late_failure_keeps_the_code_that_the_model_server_gave_it(tmp_path: Path) -> None:
    script = after_silence(answer(500, b'{"error":{"message":"broke","code":"gpu_lost"}}'))
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        got = await client.answer()
    assert json.loads(got.body.split(b"data: ")[1])["error"]["code"] == "gpu_lost"


async def test_anthropics_sign_of_life_is_its_ping_event(tmp_path: Path) -> None:
    script = after_silence(OK_EVENTS, chunk(ANTHROPIC), LAST_CHUNK, silence_s=0.5)
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/messages", chat()))
        got = await client.answer()
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    assert got.body.startswith(ping * 2)
    assert got.body.endswith(ANTHROPIC)


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_after_the_early_head_leaves_nothing_behind(reset: bool, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url, KEEPALIVE), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat()))
            await client.reader.readuntil(b": ping\n")
            client.leave(reset=reset)
            record = await gateway.record()
        await asyncio.sleep(0.04)  # a sign of life would be due
    assert (record.status, record.end_state) == (499, EndState.CLIENT_CLOSED)


async def test_openais_client_survives_signs_of_life_after_an_id(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in (b"id: 1\n" + content("one"), b"id: 2\n" + content("two"), STOP + DONE):
            await asyncio.sleep(0.05)
            await peer.send(*((OK_EVENTS,) if b"one" in piece else ()), chunk(piece))
        await peer.send(LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, "keepalive: 15ms"), tmp_path) as gateway,
    ):
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(said) == "onetwo"


async def test_a_head_for_a_client_that_has_just_left_fails_silently(
    aiohttp_client: AiohttpClient, quiet_log: pytest.LogCaptureFixture
) -> None:
    """The timer fires between the loss of the connection and the news of it."""
    settled: asyncio.Future[StreamedAnswer | None] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        record = RequestRecord("r", "POST", "/", 0.0)

        def make(_: Answer | None) -> StreamedAnswer:
            return StreamedAnswer(request, 200, stream_headers(None, record), keepalive=b": ping\n", keepalive_s=None)

        early = EarlyHead(make, 3600)
        assert request.transport is not None
        request.transport.abort()
        early._begin()
        settled.set_result(early.settle())
        await asyncio.Event().wait()  # until the news comes
        raise AssertionError

    app = web.Application()
    app.router.add_post("/", handler)
    client = await aiohttp_client(app)
    with pytest.raises(ClientConnectionError):
        await client.post("/")
    async with asyncio.timeout(1):
        assert await settled is None
