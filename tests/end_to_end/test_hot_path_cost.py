"""What one event costs on its way through the gateway, in calls: a guard without a clock.

Each event goes from a real upstream socket to a real client's. Counted is what happens inside the upstream connection's
`data_received`, which is all of an event's way: the calls into our own Python code, and the calls our code makes into
compiled code or a library's. The bounds are what it takes today, exactly; a change that needs more says so here, and
with what `scripts/bench` made of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest
import websockets

import proxy
from proxy.upstream.connection import UpstreamConnection
from tests.support.mux import mux
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import Served, one_route, served
from tests.support.stages import stage
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, ROLE, STOP, Peer, chunk, content, scripted_upstream

PATIENCE_S = 10.0
OURS = str(Path(proxy.__file__).parent)
READS_BEFORE = 5
"""Until then a stream finds its pace: the commit point, and what a watcher learns of its model server."""
READS = 10
CHAT, STAGE = "/v1/chat/completions", "/stream/v1/chat"
QUESTION = chat()
DONE_MARK = b"[DONE]"
"""What is waited for at the end, in whatever words the dialect has for it."""

Hears = Callable[[bytes], Awaitable[None]]
"""Waits until the client has read this."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one read: calls of functions of ours, and calls that ours make to what is not ours."""

    own_calls: int
    other_calls: int

    def exceeds(self, bound: Cost) -> bool:
        return self.own_calls > bound.own_calls or self.other_calls > bound.other_calls


class Counter:
    """Counts the calls below `data_received`, for each read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[Cost] = []
        self._own_calls = self._other_calls = 0
        monkeypatch.setattr(UpstreamConnection, "data_received", self._counted(UpstreamConnection.data_received))

    def _counted(
        self, data_received: Callable[[UpstreamConnection, bytes], None]
    ) -> Callable[[UpstreamConnection, bytes], None]:
        def counted(connection: UpstreamConnection, data: bytes) -> None:
            self._own_calls = self._other_calls = 0
            sys.setprofile(self._on_call)
            try:
                data_received(connection, data)
            finally:
                sys.setprofile(None)
            self.costs.append(Cost(self._own_calls, self._other_calls))

        return counted

    def _on_call(self, frame: FrameType, kind: str, argument: object) -> None:
        if kind == "call":
            if _is_ours(frame):
                self._own_calls += 1
            elif _is_ours(frame.f_back):
                self._other_calls += 1
        elif kind == "c_call" and _is_ours(frame):
            self._other_calls += 1


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


@asynccontextmanager
async def over_http(
    gateway: Served, *headers: str, path: str = CHAT, body: object = QUESTION, end: bytes = DONE_MARK
) -> AsyncIterator[Hears]:
    async with raw_client(gateway.port) as client:
        await client.send(post(path, body, *headers))

        async def hears(text: bytes) -> None:
            await client.reader.readuntil(end if text == DONE_MARK else text)

        yield hears


@asynccontextmanager
async def over_websocket(
    gateway: Served, *, path: str = "/v1/ws", body: object = QUESTION, end: bytes = DONE_MARK
) -> AsyncIterator[Hears]:
    async with websockets.connect(gateway.ws_url + path, compression=None) as socket:
        await socket.send(json.dumps(body))

        async def hears(text: bytes) -> None:
            text = end if text == DONE_MARK else text
            while text not in await socket.recv(decode=False):
                pass

        yield hears


@asynccontextmanager
async def over_mux(gateway: Served, *, resumable: bool = False) -> AsyncIterator[Hears]:
    async with mux(gateway) as client:
        await client.start(resumable=resumable)

        async def hears(text: bytes) -> None:
            if text == DONE_MARK:
                text = b'"type":"done"'
            while text not in await client.socket.recv(decode=False):
                pass

        yield hears


def over_mux_resumable(gateway: Served) -> AbstractAsyncContextManager[Hears]:
    return over_mux(gateway, resumable=True)


def over_http_resumable(gateway: Served) -> AbstractAsyncContextManager[Hears]:
    return over_http(gateway, "x-penstock-resumable: true")


def over_a_stage(gateway: Served) -> AbstractAsyncContextManager[Hears]:
    return over_http(gateway, path=STAGE, body=stage(), end=b"event: done")


def over_a_stage_s_websocket(gateway: Served) -> AbstractAsyncContextManager[Hears]:
    return over_websocket(gateway, path=STAGE, body=stage(), end=b'"event":"done"')


async def costs_of_reads(
    client: Callable[[Served], AbstractAsyncContextManager[Hears]],
    events_a_read: int,
    tmp_path: Path,
    counter: Counter,
) -> list[Cost]:
    """The cost of each read of `events_a_read` content events once the stream has found its pace.

    A read is sent when the client has seen all of the one before, so that no two of them come together.
    """
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ROLE))
        for read in range(READS_BEFORE + READS):
            await peer.send(chunk(b"".join(content(f"<{read:02}:{at:02}>") for at in range(events_a_read))))
            await heard.wait()
            heard.clear()
        await peer.send(chunk(STOP + DONE) + LAST_CHUNK)

    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        client(gateway) as hears,
    ):
        for read in range(READS_BEFORE + READS):
            await hears(b"<%02d:%02d>" % (read, events_a_read - 1))
            heard.set()
        await hears(DONE_MARK)
    return counter.costs[-READS - 1 : -1]  # the last one was the stream's end


@pytest.mark.parametrize(
    ("client", "events_a_read", "bound"),
    [
        pytest.param(over_http, 1, Cost(5, 12), id="an event a read, over HTTP"),
        pytest.param(over_websocket, 1, Cost(7, 16), id="an event a read, over a WebSocket"),
        pytest.param(over_http, 20, Cost(48, 56), id="twenty events a read, over HTTP"),
        pytest.param(over_websocket, 20, Cost(89, 155), id="twenty events a read, over a WebSocket"),
        pytest.param(over_mux, 1, Cost(11, 18), id="an event a read, over mux"),
        pytest.param(over_mux_resumable, 1, Cost(13, 22), id="an event a read, over mux, resumable"),
        pytest.param(over_http_resumable, 1, Cost(15, 22), id="an event a read, over HTTP, resumable"),
        pytest.param(over_mux, 20, Cost(113, 159), id="twenty events a read, over mux"),
        pytest.param(over_mux_resumable, 20, Cost(115, 220), id="twenty events a read, over mux, resumable"),
        pytest.param(over_a_stage, 1, Cost(19, 29), id="an event a read, of a stage over HTTP"),
        pytest.param(over_a_stage_s_websocket, 1, Cost(13, 20), id="an event a read, of a stage over a WebSocket"),
    ],
)
async def test_an_event_takes_no_more_calls_than_it_did(
    client: Callable[[Served], AbstractAsyncContextManager[Hears]],
    events_a_read: int,
    bound: Cost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = await costs_of_reads(client, events_a_read, tmp_path, Counter(monkeypatch))
    assert len(costs) == READS
    assert [cost for cost in costs if cost.exceeds(bound)] == []
