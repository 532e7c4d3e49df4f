"""What an upstream streams arrives exactly: 200 clients at once, any vendor's bytes, any cut."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import websockets

from proxy.wire.sse import Parser
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import Served, one_route, served
from tests.support.sse_streams import STREAMS
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, STOP, DONE, Peer, ROLE, chunk, content, scripted_upstream

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
        step = 97 + len(name)
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
