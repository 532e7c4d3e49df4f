"""What an upstream streams arrives exactly: 200 clients at once, any vendor's bytes, any cut."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import websockets

from proxy.wire.sse import Parser
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import Served, one_route, served
from tests.support.sse_streams import SMALL_STREAMS, TEN_MEGABYTES
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    OK_EVENTS_UNTIL_CLOSE,
    ROLE,
    STOP,
    Peer,
    chunk,
    content,
    scripted_upstream,
)

STREAMS_AT_ONCE = 200
EVENTS = 50


def numbered(name: str) -> list[bytes]:
    """A stream that no other client gets."""
    return [ROLE, *(content(f"{name}-{number}") for number in range(EVENTS)), STOP, DONE]


async def numbered_answers(peer: Peer) -> None:
    """Answers each request with the stream of the client it names, cut at odd places."""
    while True:
        request = await peer.request()
        name = json.loads(request.body)["user"]
        body = OK_EVENTS + b"".join(chunk(event) for event in numbered(name)) + LAST_CHUNK
        step = 1499 + len(name)
        await peer.send(*(body[at : at + step] for at in range(0, len(body), step)))


async def over_http(gateway: Served, name: str) -> bytes:
    async with raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", chat(user=name)))
        answer = await client.answer()
    assert (answer.status, answer.whole) == (200, True)
    return answer.body


async def over_websocket(gateway: Served, name: str) -> list[str | bytes]:
    async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
        await socket.send(json.dumps(chat(user=name)))
        frames = []
        while (frame := await socket.recv()) != "[DONE]":
            frames.append(frame)
    return frames


async def test_two_hundred_streams_at_once_are_exact_to_the_byte(tmp_path: Path) -> None:
    names = [f"client-{number}" for number in range(STREAMS_AT_ONCE)]
    async with scripted_upstream(numbered_answers) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        bodies = await asyncio.gather(*(over_http(gateway, name) for name in names))
    assert bodies == [b"".join(numbered(name)) for name in names]


async def test_two_hundred_websocket_streams_at_once_are_exact_to_the_byte(tmp_path: Path) -> None:
    names = [f"client-{number}" for number in range(STREAMS_AT_ONCE)]
    async with scripted_upstream(numbered_answers) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        streams = await asyncio.gather(*(over_websocket(gateway, name) for name in names))
    for name, frames in zip(names, streams, strict=True):
        assert frames == [event[6:-2].decode() for event in numbered(name)[:-1]]


# What each vendor's stream is: the endpoint it is streamed at. The others are chat completions.
ENDPOINTS = {"completions": "/v1/completions", "responses": "/v1/responses", "anthropic": "/v1/messages"}
ENDPOINTS |= {"crlf with event lines": "/v1/messages", "mixed line ends": "/v1/of/no/known/protocol"}
INCOMPLETE = {"half event"}
# What would otherwise be withheld.
ASKED: dict[str, Any] = {"vllm with usage": {"stream_options": {"include_usage": True}}}


def events_of(stream: bytes) -> list[tuple[bytes, bytes]]:
    return [(event.type, event.data) for event in Parser(1 << 26).feed(stream)]


def meant_to_pass(name: str) -> list[tuple[bytes, bytes]]:
    """A known protocol's events are objects, or `[DONE]`; what cannot be one is dropped."""
    events = events_of(SMALL_STREAMS[name])
    return events if name == "mixed line ends" else [event for event in events if event[1][:1] in (b"{", b"[")]


@pytest.mark.parametrize("framing", ["one chunk", "byte by byte", "until close"])
@pytest.mark.parametrize("name", SMALL_STREAMS)
async def test_any_vendors_stream_passes_with_the_same_events(name: str, framing: str, tmp_path: Path) -> None:
    stream = SMALL_STREAMS[name]
    endpoint = ENDPOINTS.get(name, "/v1/chat/completions")

    async def script(peer: Peer) -> None:
        await peer.request()
        match framing:
            case "one chunk":
                await peer.send(OK_EVENTS, chunk(stream), LAST_CHUNK)
            case "byte by byte":
                await peer.send(OK_EVENTS, *(chunk(stream[at : at + 1]) for at in range(len(stream))), LAST_CHUNK)
            case _:
                await peer.send(OK_EVENTS_UNTIL_CLOSE, stream)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post(endpoint, chat(**ASKED.get(name, {}))))
            answer = await client.answer()
        record = await gateway.record()
    assert answer.whole
    given = meant_to_pass(name)
    complete = name not in INCOMPLETE
    assert events_of(answer.body)[: len(given)] == given
    assert len(events_of(answer.body)) == len(given) + (not complete)
    assert (record.end_state == "completed") == complete
    assert b"\n:" not in answer.body
    assert not answer.body.startswith(b":")


async def test_an_event_of_ten_megabytes_passes(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        for at in range(0, len(TEN_MEGABYTES), 60_000):
            await peer.send(chunk(TEN_MEGABYTES[at : at + 60_000]))
        await peer.send(LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat()))
            answer = await client.answer()
    assert answer.whole
    assert answer.body == TEN_MEGABYTES


@pytest.mark.parametrize("size", [0, 1, 200_000, 300_000, 5_000_000])
@pytest.mark.parametrize("framing", ["content-length", "chunked", "until close"])
async def test_an_answer_in_one_piece_is_exact_to_the_byte(size: int, framing: str, tmp_path: Path) -> None:
    body = b'{"a":"' + b"\xc3\xa9" * size + b'"}\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Vendor: 1\r\n"

    async def script(peer: Peer) -> None:
        await peer.request()
        match framing:
            case "content-length":
                await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(body), body)
            case "chunked":
                await peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n", chunk(body), LAST_CHUNK)
            case _:
                await peer.send(head + b"\r\n", body)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/embeddings", {"model": "m", "input": "x"}))
            answer = await client.answer()
    assert (answer.status, answer.whole, answer.headers["x-vendor"]) == (200, True, "1")
    assert answer.body == body
