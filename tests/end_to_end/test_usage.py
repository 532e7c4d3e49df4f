"""Tokens are recorded whatever the client asks for, and it sees the usage chunk only where it asked: through the openai
SDK and over a WebSocket, with the built-in model and with vendors' streams."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from openai import AsyncOpenAI

from tests.support.raw_client import chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.sse_streams import LLAMA_CPP, OPENAI_CHAT, TRANSFORMERS_SERVE, VLLM_WITH_USAGE
from tests.support.upstream import (
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    Peer,
    answer,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.served import Served

TOKENS = 12
DEMO = one_route(f"demo://?tokens={TOKENS}&interval=0&first=0")
PROMPT = "word " * 80  # about a hundred tokens
ASKED: dict[str, Any] = {"stream_options": {"include_usage": True}}
USAGE_CHUNK = VLLM_WITH_USAGE.split(b"\n\n")[2] + b"\n\n"


@asynccontextmanager
async def sdk_of(gateway: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=30) as sdk:
        yield sdk


async def streamed(sdk: AsyncOpenAI, **more: Any) -> list[Any]:
    """The chunks of a chat, as the SDK gives them."""
    messages: Any = [{"role": "user", "content": PROMPT}]
    return [each async for each in await sdk.chat.completions.create(model="m", messages=messages, stream=True, **more)]


async def completed(sdk: AsyncOpenAI, **more: Any) -> list[Any]:
    """The chunks of a completion."""
    return [each async for each in await sdk.completions.create(model="m", prompt=PROMPT, stream=True, **more)]


@pytest.mark.parametrize("ask", [streamed, completed])
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": {}}, ASKED])
async def test_the_sdk_sees_the_usage_chunk_where_it_asked_and_the_record_has_it_always(
    ask: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    async with served(DEMO, tmp_path) as gateway, sdk_of(gateway) as sdk:
        chunks = await ask(sdk, **options)
        record = await gateway.record()
    told = [each.usage for each in chunks if not each.choices]
    assert len(told) == (1 if options == ASKED else 0)
    assert [each.usage for each in chunks if each.choices] == [None] * (len(chunks) - len(told))
    assert (record.tokens_out, record.tokens_estimated) == (TOKENS, False)
    assert record.tokens_in
    for usage in told:
        assert (usage.prompt_tokens, usage.completion_tokens) == (record.tokens_in, record.tokens_out)


@pytest.mark.parametrize("asked", [False, True])
async def test_a_websocket_sees_the_usage_chunk_where_it_asked(asked: bool, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
            await socket.send(json.dumps(chat(**(ASKED if asked else {}))))
            frames = []
            while (frame := await socket.recv()) != "[DONE]":
                frames.append(json.loads(frame))
        record = await gateway.record()
    assert [bool(frame["choices"]) for frame in frames[-2:]] == [True, not asked]
    assert (record.tokens_out, record.tokens_estimated) == (TOKENS, False)


@pytest.mark.parametrize(
    ("stream", "seen", "tokens"),
    [
        (VLLM_WITH_USAGE, VLLM_WITH_USAGE.replace(USAGE_CHUNK, b""), (11, 1, False)),
        (TRANSFORMERS_SERVE, TRANSFORMERS_SERVE.replace(b"\n\n\n", b"\n\n"), (2, 1, False)),
        (OPENAI_CHAT, OPENAI_CHAT, (None, 2, True)),
        (LLAMA_CPP, LLAMA_CPP.replace(b":\n\n", b""), (None, 1, True)),
    ],
    ids=["vllm", "transformers serve", "openai", "llama.cpp"],
)
async def test_vendors_streams_pass_but_for_a_usage_chunk_nobody_asked_for(
    stream: bytes, seen: bytes, tokens: tuple[int | None, int, bool], tmp_path: Path
) -> None:
    pieces = (OK_EVENTS, chunk(stream), LAST_CHUNK)
    async with scripted_upstream(answering(*pieces)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat(messages=[{"role": "user", "content": PROMPT}])))
            told = await client.answer()
        record = await gateway.record()
    read, written, estimated = tokens
    assert (told.whole, told.body) == (True, seen)
    assert (record.tokens_out, record.tokens_estimated) == (written, estimated)
    assert record.tokens_in == read or (read is None and 100 <= (record.tokens_in or 0) <= 120)


@pytest.mark.parametrize("cut", range(1, 120, 7))
async def test_a_usage_chunk_is_withheld_wherever_it_is_cut(cut: int, tmp_path: Path) -> None:
    at = VLLM_WITH_USAGE.index(USAGE_CHUNK) + cut
    pieces = (OK_EVENTS, chunk(VLLM_WITH_USAGE[:at]), chunk(VLLM_WITH_USAGE[at:]), LAST_CHUNK)
    async with scripted_upstream(answering(*pieces)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat()))
            told = await client.answer()
        record = await gateway.record()
    assert told.body == VLLM_WITH_USAGE.replace(USAGE_CHUNK, b"")
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (11, 1, False)


async def test_a_client_that_leaves_mid_stream_has_its_tokens_estimated(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ROLE + b"".join(content(f"<{number}>") for number in range(TOKENS))))
        await peer.closed()

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat(messages=[{"role": "user", "content": PROMPT}])))
            await client.reader.readuntil(b"<%d>" % (TOKENS - 1))
            client.leave()
        record = await gateway.record()
    assert (record.end_state, record.tokens_out, record.tokens_estimated) == ("client_closed", TOKENS, True)
    assert 100 <= (record.tokens_in or 0) <= 120


async def test_answers_in_one_piece_tell_their_tokens(tmp_path: Path) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    async with served(DEMO, tmp_path) as gateway, sdk_of(gateway) as sdk:
        told = await sdk.chat.completions.create(model="m", messages=messages)
        written = await sdk.completions.create(model="m", prompt=PROMPT)
        response = await sdk.responses.create(model="m", input=PROMPT)
        embedding = await sdk.embeddings.create(model="m", input=PROMPT)
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/messages", {"model": "m", "max_tokens": 100, "messages": messages}))
            message = json.loads((await client.answer()).body)
        await gateway.record(4)
    assert told.usage
    assert written.usage
    assert response.usage
    assert [(record.tokens_in, record.tokens_out, record.tokens_estimated) for record in gateway.records] == [
        (told.usage.prompt_tokens, told.usage.completion_tokens, False),
        (written.usage.prompt_tokens, written.usage.completion_tokens, False),
        (response.usage.input_tokens, response.usage.output_tokens, False),
        (embedding.usage.prompt_tokens, 0, False),
        (message["usage"]["input_tokens"], message["usage"]["output_tokens"], False),
    ]


async def test_the_sdk_never_notices_a_server_that_refuses_stream_options(tmp_path: Path) -> None:
    refusal = answer(400, b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}')

    async def script(peer: Peer) -> None:
        while True:
            refused = b"stream_options" in (await peer.request()).body
            await peer.send(*([refusal] if refused else [OK_EVENTS, chunk(OPENAI_CHAT), LAST_CHUNK]))

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with sdk_of(gateway) as sdk:
            first, second = await streamed(sdk), await streamed(sdk)
        await gateway.record(1)
    assert [each.choices[0].delta.content for each in first] == [each.choices[0].delta.content for each in second]
    assert len(upstream.requests) == 3
    assert [(record.attempts, record.tokens_out) for record in gateway.records] == [(2, 2), (1, 2)]
    assert all(record.tokens_estimated for record in gateway.records)
