"""Clients of a soak that ask many things at once on one socket: in the mux dialect, and in Responses' lanes.

As `soak_clients`, they go on until their task is cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import websockets

from tests.support.soak_clients import CHAT, NO_HURRY_S, Soak
from tests.support.soak_tally import Asking, Departure, Told

LANES = 16
"""Requests at once on one socket: as many as the gateway takes."""
DEPARTURES: tuple[Departure, ...] = ("cancels",)

Frame = dict[str, Any]


class SharedSocket:
    """Lanes on one socket. `lane_of` says whose a frame is."""

    def __init__(self, soak: Soak, socket: websockets.ClientConnection, lane_of: str) -> None:
        self.soak = soak
        self._socket = socket
        self._lane_of = lane_of
        self._inboxes: dict[str, asyncio.Queue[Frame]] = {}

    async def dispatch(self) -> None:
        """Gives each lane its frames, for as long as there are any."""
        async for text in self._socket:
            frame = json.loads(text)
            if (inbox := self._inboxes.get(frame.get(self._lane_of))) is not None:
                inbox.put_nowait(frame)
        self.soak.tally.flaw(f"{self._lane_of}: the gateway closed the socket: {self._socket.close_reason}")

    async def ask(
        self, lane: str, start: Frame, cancel: Frame, asking: Asking, hear: Callable[[Told, Frame], None]
    ) -> Told:
        told = Told()
        inbox = self._inboxes[lane] = asyncio.Queue()
        await self._socket.send(json.dumps(start))
        try:
            try:
                async with asyncio.timeout(asking.patience_s or NO_HURRY_S):
                    await self._hear_out(inbox, told, hear)
            except TimeoutError:
                told.left = asking.departure != "stays"
                await self._socket.send(json.dumps(cancel))
                async with asyncio.timeout(NO_HURRY_S):
                    await self._hear_out(inbox, told, hear)
        finally:
            del self._inboxes[lane]
        return told

    async def _hear_out(self, inbox: asyncio.Queue[Frame], told: Told, hear: Callable[[Told, Frame], None]) -> None:
        while not told.is_over:
            hear(told, await inbox.get())


async def mux_client(soak: Soak, rng: Random) -> None:
    """`LANES` requests at once; some can be resumed, and nobody comes back for them."""
    while True:
        async with soak.socket("/v1/ws", "llm-mux.v1") as socket:
            shared = SharedSocket(soak, socket, "rid")
            names = (f"r{number}" for number in itertools.count())
            await _live(socket, rng, shared, [_mux_lane(shared, names, rng) for _ in range(LANES)])


async def _mux_lane(shared: SharedSocket, names: Iterator[str], rng: Random) -> None:
    for rid in names:
        asking = Asking.drawn(rng, DEPARTURES)
        start = {"type": "start", "rid": rid, "path": CHAT, "body": asking.chat(), "resumable": rng.random() < 0.3}
        told = await shared.ask(rid, start, {"type": "cancel", "rid": rid}, asking, _hear_mux)
        shared.soak.tally.add("mux", asking, told)


def _hear_mux(told: Told, frame: Frame) -> None:
    match frame["type"]:
        case "chat_completion_chunk":
            choices = frame["data"]["chunk"]["choices"]
            told.said += [text for choice in choices if (text := choice["delta"].get("content"))]
        case "done":
            told.ended = True
        case "error":
            told.errors.append(frame["data"]["error"]["code"])
        case "cancel":
            told.errors.append("cancelled")


async def responses_client(soak: Soak, rng: Random) -> None:
    while True:
        async with soak.socket("/v1/responses") as socket:
            shared = SharedSocket(soak, socket, "stream_id")
            await _live(socket, rng, shared, [_responses_lane(shared, f"l{lane}", rng) for lane in range(LANES)])


async def _responses_lane(shared: SharedSocket, lane: str, rng: Random) -> None:
    while True:
        asking = Asking.drawn(rng, DEPARTURES)
        start = {"type": "response.create", "model": asking.route, "input": asking.prompt(), "stream_id": lane}
        told = await shared.ask(lane, start, {"type": "response.cancel", "stream_id": lane}, asking, _hear_responses)
        shared.soak.tally.add("responses", asking, told)


def _hear_responses(told: Told, frame: Frame) -> None:
    match frame["type"]:
        case "response.output_text.delta":
            told.said.append(frame["delta"])
        case "response.completed":
            told.ended = True
        case "response.failed":
            told.errors.append(frame["response"]["error"]["code"])
        case "error":
            told.errors.append(frame["error"]["code"])


async def _live(socket: websockets.ClientConnection, rng: Random, shared: SharedSocket, lanes: list[Any]) -> None:
    """Some seconds with these lanes; then their socket is closed under them, or aborted."""
    lifetime_s, closes = rng.uniform(10.0, 40.0), rng.random() < 0.5
    with suppress(TimeoutError):
        async with asyncio.timeout(lifetime_s), asyncio.TaskGroup() as group:
            for lane in (shared.dispatch(), *lanes):
                group.create_task(lane)
    if closes:
        await socket.close()
