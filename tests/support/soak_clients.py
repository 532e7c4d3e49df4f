"""A thousand clients for a soak: each asks for one fate after another, in its dialect, and leaves when it likes.

They go on until their task is cancelled, and then leave all at once. What they must be told is `soak_tally`'s to say;
those that ask many things at once on one socket are `soak_lanes`'.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random

import websockets

from tests.support.raw_client import RawAnswer, RawClient, post, raw_client
from tests.support.soak_tally import Asking, Departure, Tally, Told

CHAT = "/v1/chat/completions"
NO_HURRY_S = 90.0
"""Longer than any answer, however busy the machine: past it a stream has no end."""
HTTP_DEPARTURES: tuple[Departure, ...] = ("closes", "aborts")
SOCKET_DEPARTURES: tuple[Departure, ...] = ("closes", "aborts", "cancels", "cancels")


@dataclass(frozen=True, slots=True)
class Soak:
    """Who is asked, and where it is noted down."""

    port: int
    tally: Tally

    @asynccontextmanager
    async def socket(self, path: str, *protocols: str) -> AsyncIterator[websockets.ClientConnection]:
        """Aborted when the block ends, unless it has closed it."""
        socket = await websockets.connect(
            f"ws://127.0.0.1:{self.port}{path}",
            subprotocols=[websockets.Subprotocol(name) for name in protocols] or None,
            compression=None,
            max_queue=None,
            ping_interval=None,
            close_timeout=2,
            open_timeout=NO_HURRY_S,
        )
        try:
            yield socket
        finally:
            socket.transport.abort()


# ---- HTTP: events, or an answer in one piece ----


async def http_client(soak: Soak, rng: Random) -> None:
    while True:
        async with raw_client(soak.port) as client:
            for _ in range(rng.randint(1, 4)):
                if not await _ask_over_http(soak, client, Asking.drawn(rng, HTTP_DEPARTURES)):
                    break


async def _ask_over_http(soak: Soak, client: RawClient, asking: Asking) -> bool:
    """Whether the connection may be used again."""
    await client.send(post(CHAT, asking.chat(stream=asking.streaming)))
    told = Told()
    try:
        async with asyncio.timeout(asking.patience_s) as patience:
            answer = await client.answer(patience_s=NO_HURRY_S)
            told = read_chat(answer)
    except TimeoutError:
        if not patience.expired():
            soak.tally.flaw(f"http: no end: {asking}")
        with suppress(OSError):  # the gateway was quicker
            client.leave(reset=asking.departure == "aborts")
        told.left = True
    soak.tally.add("http", asking, told)
    return not told.left and answer.whole and answer.headers.get("connection") != "close"


def read_chat(answer: RawAnswer) -> Told:
    """What an answer over HTTP tells, in events or in one piece."""
    told = Told()
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        for line in answer.body.split(b"\n"):
            if line.startswith(b"data: "):
                hear_chat(told, line[6:].decode())
        return told
    try:
        body = json.loads(answer.body)
    except ValueError:
        told.errors.append(f"no JSON: {answer}")
        return told
    if answer.status >= 400:
        told.errors.append(body["error"]["code"])
    else:
        told.said = [f"{text} " for text in body["choices"][0]["message"]["content"].split()]
        told.ended = answer.whole
    return told


def hear_chat(told: Told, data: str) -> None:
    """One event's data, of events or of the bare dialect."""
    if data == "[DONE]":
        told.ended = True
        return
    decoded = json.loads(data)
    if "error" in decoded:
        told.errors.append(decoded["error"]["code"])
        return
    told.said += [text for choice in decoded["choices"] if (text := choice["delta"].get("content"))]


# ---- the bare dialect: one request after another on a socket ----


async def bare_client(soak: Soak, rng: Random) -> None:
    while True:
        async with soak.socket("/v1/ws") as socket:
            for _ in range(rng.randint(1, 5)):
                if not await _ask_bare(soak, socket, Asking.drawn(rng, SOCKET_DEPARTURES)):
                    break
            else:
                await socket.close()


async def _ask_bare(soak: Soak, socket: websockets.ClientConnection, asking: Asking) -> bool:
    """Whether the socket may be used again."""
    await socket.send(json.dumps(asking.chat()))
    told = Told()
    try:
        async with asyncio.timeout(asking.patience_s or NO_HURRY_S):
            while not told.is_over:
                hear_chat(told, str(await socket.recv()))
    except TimeoutError:
        told.left = True
        if asking.departure == "stays":
            soak.tally.flaw(f"bare: no end: {asking}")
    soak.tally.add("bare", asking, told)
    if told.left and asking.departure == "cancels":
        return await _cancel_bare(soak, socket)
    if told.left and asking.departure == "closes":
        await socket.close()
    return not told.left


async def _cancel_bare(soak: Soak, socket: websockets.ClientConnection) -> bool:
    """Whether it was told that it is cancelled; its end may have been on its way already."""
    await socket.send('{"type":"cancel"}')
    told = Told()
    async with asyncio.timeout(NO_HURRY_S):
        while not told.is_over:
            frame = str(await socket.recv())
            if frame == '{"type":"cancel"}':
                return True
            hear_chat(told, frame)
    return False
