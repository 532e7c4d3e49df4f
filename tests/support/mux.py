"""A client of the `llm-mux.v1` dialect, on an independent WebSocket library: says messages, shows frames."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import websockets

from tests.support.raw_client import chat

if TYPE_CHECKING:
    from tests.support.served import Served

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


def content_of(frames: list[Frame]) -> list[str]:
    """What the chat chunks among them say."""
    chunks = [frame["data"]["chunk"] for frame in frames if frame["type"] == "chat_completion_chunk"]
    return [
        choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"] if "content" in choice["delta"]
    ]
