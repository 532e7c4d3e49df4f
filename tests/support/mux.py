"""A client of the `llm-mux.v1` dialect, on an independent WebSocket library: says messages, shows frames."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import websockets

from tests.support.raw_client import chat
from tests.support.served import Served, one_route, served
from tests.support.upstream import (
    LAST_CHUNK,
    OK_EVENTS,
    Peer,
    Script,
    ScriptedUpstream,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.telemetry.record import RequestRecord

PATIENCE_S = 5.0
TERMINALS = ("done", "cancel", "error")

Frame = dict[str, Any]


class MuxClient:
    """`heard` are all the frames so far, as they came."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.heard: list[str] = []

    async def say(self, type: str, **members: object) -> None:
        await self.socket.send(json.dumps({"type": type, **members}))

    async def start(self, rid: str = "r1", path: str = "/v1/chat/completions", **members: object) -> None:
        """A chat, unless `body` says otherwise."""
        await self.say("start", **{"rid": rid, "path": path, "body": chat(), **members})

    async def hear(self) -> Frame:
        """The next frame."""
        async with asyncio.timeout(PATIENCE_S):
            text = await self.socket.recv()
        assert isinstance(text, str)
        assert "\n" not in text
        self.heard.append(text)
        frame: Frame = json.loads(text)
        return frame

    async def until(self, *types: str) -> list[Frame]:
        """The frames up to the first of one of these types."""
        frames = [await self.hear()]
        while frames[-1]["type"] not in types:
            frames.append(await self.hear())
        return frames

    async def ended(self, rid: str = "r1") -> list[Frame]:
        """This rid's frames up to its terminal one."""
        frames: list[Frame] = []
        while not frames or frames[-1]["type"] not in TERMINALS:
            frame = await self.hear()
            if frame.get("rid") == rid:
                frames.append(frame)
        return frames

    async def closed(self) -> tuple[int | None, str | None]:
        """The code and reason of the gateway's Close; what comes before it is heard."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                async for text in self.socket:
                    assert isinstance(text, str)
                    self.heard.append(text)
            except websockets.ConnectionClosedError:
                pass
        return self.socket.close_code, self.socket.close_reason

    async def is_silent(self, within_s: float = 0.05) -> bool:
        try:
            async with asyncio.timeout(within_s):
                self.heard.append(str(await self.socket.recv()))
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def mux(gateway: Served, path: str = "/v1/ws", **connect: Any) -> AsyncIterator[MuxClient]:
    """A socket that speaks mux; `connect` are the library's own settings."""
    dialect = websockets.Subprotocol("llm-mux.v1")
    settings = {"max_size": None, "max_queue": None, "close_timeout": 1, "compression": None, **connect}
    async with websockets.connect(gateway.ws_url + path, **{"subprotocols": [dialect], **settings}) as socket:
        yield MuxClient(socket)


@asynccontextmanager
async def mux_session(
    script: Script, tmp_path: Path, *settings: str, server: str = "port: 0", more: str = ""
) -> AsyncIterator[tuple[MuxClient, Served, ScriptedUpstream]]:
    """A mux socket to a gateway whose only replica plays `script`."""
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, *settings, server=server) + more, tmp_path) as gateway,
        mux(gateway) as client,
    ):
        yield client, gateway, upstream


async def asked(
    script: Script, tmp_path: Path, path: str, body: object
) -> tuple[list[Frame], RequestRecord, dict[str, object]]:
    """The frames a request gets on such a socket, its record, and what the upstream was asked."""
    async with mux_session(script, tmp_path) as (client, gateway, upstream):
        await client.start(path=path, body=body)
        frames = await client.ended()
        return frames, await gateway.record(), json.loads(upstream.requests[0].body)


def streaming(*events: bytes) -> Script:
    """Answers with all of these in one read."""
    return answering(OK_EVENTS, chunk(b"".join(events)), LAST_CHUNK)


async def held(peer: Peer) -> None:
    """One event, and then nothing until the gateway has had enough."""
    await peer.request()
    await peer.send(OK_EVENTS, chunk(content("one")))
    await peer.closed()


def content_of(frames: list[Frame]) -> list[str]:
    """What the chat chunks among them say."""
    chunks = [frame["data"]["chunk"] for frame in frames if frame["type"] == "chat_completion_chunk"]
    return [
        choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"] if "content" in choice["delta"]
    ]
