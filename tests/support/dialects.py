"""Every dialect a client may speak, in one table: how a request is sent in it, how its end reads, what it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import websockets

from tests.support.clients import (
    Reader,
    Seen,
    read_answer,
    read_chat,
    read_message,
    read_mux,
    read_response,
    read_stage,
)
from tests.support.model_words import CHAT, MESSAGES, RESPONSES, Words
from tests.support.raw_client import ask as ask_raw
from tests.support.raw_client import chat, post
from tests.support.served import Served
from tests.support.stages import stage

PATIENCE_S = 30.0
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_ALL = frozenset({"status", "code", "retry", "headers"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """`asks`: the body of a request to the route `m`, or the message that is one. `words`: what its model server
    speaks. `cancel`: the message that stops it. `tells`: which of `status`, `code`, `retry` (when to come back) and
    `headers` (the answer's) a failure before any content has."""

    name: str
    path: str
    asks: dict[str, Any]
    read: Reader
    words: Words = CHAT
    tells: frozenset[str] = _ALL
    streams: bool = True
    is_socket: bool = False
    subprotocol: str | None = None
    cancel: str = ""

    def request(self, model: str = "m", headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        """The request over HTTP."""
        return post(self.path, self._body(model), *(f"{name}: {value}" for name, value in headers.items()))

    def message(self, model: str = "m") -> str:
        """The request over a socket."""
        return json.dumps(self._body(model))

    def _body(self, model: str) -> dict[str, Any]:
        if "body" in self.asks:
            return {**self.asks, "body": {**self.asks["body"], "model": model}}
        return {**self.asks, "model_container" if "stage_id" in self.asks else "model": model}


def _socket(name: str, path: str, asks: dict[str, Any], read: Reader, tells: str, **more: Any) -> Dialect:
    return Dialect(name, path, asks, read, tells=frozenset(tells.split()), is_socket=True, **more)


MUX_START = {"type": "start", "rid": "r1", "path": "/v1/chat/completions", "body": chat()}
CREATE = {"type": "response.create", "input": "Say something."}
COMPLETIONS = "/v1/chat/completions"
SENTENCES = frozenset({"status", "retry", "headers"})
CANCEL = '{"type":"cancel"}'

HTTP = Dialect("http", COMPLETIONS, chat(stream=False), read_chat, streams=False)
WHOLE_STAGE = Dialect("stage in one piece", "/completion/v1/chat", stage(), read_chat, tells=SENTENCES, streams=False)
SSE = Dialect("sse", COMPLETIONS, chat(), read_chat)
MESSAGE_EVENTS = Dialect(
    "messages", "/v1/messages", {**chat(), "max_tokens": 9}, read_message, MESSAGES, tells=SENTENCES
)
RESPONSE_EVENTS = Dialect(
    "response events", "/v1/responses", {"input": "Say something.", "stream": True}, read_response, RESPONSES
)
STAGE_EVENTS = Dialect("stage", "/stream/v1/chat", stage(), read_stage, tells=SENTENCES)
BARE = _socket("bare", "/v1/ws", chat(), read_chat, "status code", cancel=CANCEL)
STAGE_FRAMES = _socket("stage frames", "/stream/v1/chat", stage(), read_stage, "", cancel=CANCEL)
MUX = _socket(
    "mux",
    "/v1/ws",
    MUX_START,
    read_mux,
    "status code retry",
    subprotocol="llm-mux.v1",
    cancel='{"type":"cancel","rid":"r1"}',
)
RESPONSES_FRAMES = _socket(
    "responses",
    "/v1/responses",
    CREATE,
    read_response,
    "status code retry",
    words=RESPONSES,
    cancel='{"type":"response.cancel"}',
)

DIALECTS = (
    HTTP,
    WHOLE_STAGE,
    SSE,
    MESSAGE_EVENTS,
    RESPONSE_EVENTS,
    STAGE_EVENTS,
    BARE,
    STAGE_FRAMES,
    MUX,
    RESPONSES_FRAMES,
)
STREAMING = tuple(dialect for dialect in DIALECTS if dialect.streams)
SOCKETS = tuple(dialect for dialect in DIALECTS if dialect.is_socket)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway is that runs in a process of its own."""

    url: str

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


async def ask(
    gateway: Served | Place, dialect: Dialect, model: str = "m", headers: Mapping[str, str] = NO_HEADERS
) -> Seen:
    """What the client of this dialect sees of one request, to its end. A socket must live through it all, and nothing
    may follow the end."""
    async with asyncio.timeout(PATIENCE_S):
        if not dialect.is_socket:
            return read_answer(await ask_raw(gateway.port, dialect.request(model, headers)), dialect.read)
        async with connected(gateway, dialect, headers) as socket:
            await socket.send(dialect.message(model))
            seen = await heard(socket, dialect)
            assert await last_words(socket) == []
            return seen


@asynccontextmanager
async def connected(
    gateway: Served | Place, dialect: Dialect, headers: Mapping[str, str] = NO_HEADERS
) -> AsyncIterator[websockets.ClientConnection]:
    """A socket of this dialect, on which nothing was said yet."""
    offered = [websockets.Subprotocol(dialect.subprotocol)] if dialect.subprotocol else None
    async with websockets.connect(
        gateway.ws_url + dialect.path,
        subprotocols=offered,
        additional_headers=headers,
        max_size=None,
        compression=None,
        close_timeout=1,
    ) as socket:
        yield socket


async def heard(socket: websockets.ClientConnection, dialect: Dialect, *, said: int | None = None) -> Seen:
    """What comes of a request on this socket, up to its end, or until so much was `said`."""
    seen = Seen()
    while not seen.over and (said is None or len(seen.said) < said):
        frame = await socket.recv()
        assert isinstance(frame, str)
        dialect.read(seen, "", frame if frame == "[DONE]" else json.loads(frame))
    return seen


async def last_words(socket: websockets.ClientConnection) -> list[str | bytes]:
    """What else comes on a socket that lives, up to its close, which is ours."""
    await (await socket.ping())
    await socket.close()
    words = []
    with suppress(websockets.ConnectionClosedOK):
        while True:
            words.append(await socket.recv())
    return words
