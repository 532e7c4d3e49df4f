"""A thousand mux sessions whose finished streams are kept: never more than the cap for all, and in the end nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest
import websockets

from proxy.streams.store import ALL_BYTES
from tests.support.census import count, resident_kib
from tests.support.gateway import running_gateway
from tests.support.open_files import allow_many_files
from tests.support.raw_client import chat
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, ROLE, STOP, answering, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.gateway import RunningGateway

pytestmark = pytest.mark.slow

SESSIONS: Final = 1_000
AT_ONCE: Final = 25
STREAMS: Final = 5
EVENTS: Final = 2
EVENT_BYTES: Final = 36_000
EVERYTHING_BYTES: Final = SESSIONS * STREAMS * EVENTS * EVENT_BYTES
ROUTES: Final = """
discover: false
server: {websocket: {replay: 12s}}
routes: {m: '%s'}
"""
SESSION_KIB: Final = 60
"""An open session, with what its socket's buffers may hold."""
SPARE_KIB: Final = 64 * 1024
"""Between what Python and malloc have given out, which is as before, and what the system has lent them: small objects
that live on keep their pages. Twice what was seen."""
FORGOTTEN_WITHIN_S: Final = 90.0
KEPT: Final = "proxy.streams.numbered.NumberedStream"

Session = tuple[websockets.ClientConnection, list[str]]


def answered() -> bytes:
    events = [content(f"{at:.>{EVENT_BYTES}}") for at in range(EVENTS)]
    return b"".join([OK_EVENTS, *map(chunk, [ROLE, *events, STOP, DONE]), LAST_CHUNK])


async def session(gateway: RunningGateway, held: AsyncExitStack) -> Session:
    """A socket that stays, whose streams have come to their ends; and their ids."""
    dialect = websockets.Subprotocol("llm-mux.v1")
    socket = await held.enter_async_context(
        websockets.connect(
            gateway.ws_url + "/v1/ws", subprotocols=[dialect], compression=None, max_size=None, close_timeout=1
        )
    )
    for number in range(STREAMS):
        start = {"rid": f"r{number}", "path": "/v1/chat/completions", "resumable": True, "body": chat()}
        await socket.send(json.dumps({"type": "start", **start}))
    streams: list[str] = []
    ended = 0
    while ended < STREAMS:
        frame = json.loads(await socket.recv())
        ended += frame["type"] == "done"
        if frame["type"] == "accepted":
            streams.append(frame["stream"])
    return socket, streams


async def resumed(told: Session) -> list[dict[str, Any]]:
    """What the gateway has of a session's last stream."""
    socket, streams = told
    await socket.send(json.dumps({"type": "resume", "rid": "again", "stream": streams[-1], "after": 0}))
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["type"] not in ("done", "error"):
        frame = json.loads(await socket.recv())
        if frame["type"] != "ping":
            frames.append(frame)
    return frames


def types(frames: Iterable[dict[str, Any]]) -> list[str]:
    return [frame["type"] for frame in frames]


async def test_what_a_thousand_sessions_leave_stays_under_the_cap_for_all_and_goes(tmp_path: Path) -> None:
    allow_many_files()
    assert EVERYTHING_BYTES > ALL_BYTES
    async with (
        scripted_upstream(answering(answered())) as upstream,
        running_gateway(ROUTES % upstream.url, tmp_path, module="tests.support.census") as gateway,
        AsyncExitStack() as held,
    ):
        async with AsyncExitStack() as first:
            await session(gateway, first)
        before = await count(gateway)

        sessions: list[Session] = []
        most_kib = 0
        for _ in range(SESSIONS // AT_ONCE):
            sessions += await asyncio.gather(*(session(gateway, held) for _ in range(AT_ONCE)))
            most_kib = max(most_kib, resident_kib(gateway.process.pid))
        assert most_kib - before.resident_kib > ALL_BYTES // 4096
        assert most_kib - before.resident_kib < ALL_BYTES * 1.25 // 1024 + SESSIONS * SESSION_KIB

        assert types(await resumed(sessions[-1])) == ["resumed", *["chat_completion_chunk"] * (EVENTS + 2), "done"]
        [gone] = await resumed(sessions[0])  # those that ended first made room
        assert gone["data"]["error"]["code"] == "stream_not_found"

        await held.aclose()
        async with asyncio.timeout(FORGOTTEN_WITHIN_S):
            while (after := await count(gateway)).kinds[KEPT]:
                await asyncio.sleep(0.5)
        assert after.tasks <= before.tasks
        assert after.malloc_kib < before.malloc_kib + 2048, after.more_than(before)
        assert after.blocks < before.blocks * 1.05, after.more_than(before)
        assert after.resident_kib < before.resident_kib + SPARE_KIB
