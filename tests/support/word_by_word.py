"""A gateway in front of a model server that says one word after another, each when it is told to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.served import Served, one_route, served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.mux import MuxClient

KEYS = "auth: {keys: [{name: web, key: sk-w3b}, {name: other, key: sk-0th3r}]}\n"


@dataclass
class Model:
    """A model server that says one word after another, each when it is told to."""

    words: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS)
        closed = asyncio.create_task(peer.closed())
        while True:
            word = asyncio.create_task(self.words.get())
            await asyncio.wait([word, closed], return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                self.left.set()
                word.cancel()
                return
            said = word.result()
            if said is None:
                await peer.send(chunk(STOP), LAST_CHUNK)
            else:
                await peer.send(chunk(content(said)))

    def say(self, words: str) -> None:
        for word in words.split():
            self.words.put_nowait(word)

    def stop(self) -> None:
        self.words.put_nowait(None)


@asynccontextmanager
async def world(
    tmp_path: Path, websocket: str = "{}", more: str = "", *, route: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Model, Served]]:
    """`route` are more lines of the route, `more` of the file."""
    model = Model()
    async with (
        scripted_upstream(model.script) as upstream,
        served(one_route(upstream.url, *route, server=f"port: 0\nwebsocket: {websocket}") + more, tmp_path) as gateway,
    ):
        yield model, gateway


async def begun(model: Model, client: MuxClient, words: str, rid: str = "r1") -> str:
    """A resumable request that has said these words; its stream's id."""
    await client.start(rid, resumable=True)
    model.say(words)
    frames = await client.until("chat_completion_chunk")
    for _ in words.split()[1:]:
        await client.hear()
    accepted = next(frame for frame in frames if frame["type"] == "accepted")
    stream: str = accepted["stream"]
    return stream
