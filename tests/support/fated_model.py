"""A model server as a process of its own, which does with each answer what the prompt says (`fate`); to be killed and
started again on its port. It speaks chat completions and Responses: `python -m tests.support.fated_model PORT`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.fate import Fate, word
from tests.support.open_files import allow_many_files
from tests.support.reserved_port import reserved_port
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    answer,
    chunk,
    content,
    event,
    scripted_upstream,
)

ROOT = Path(__file__).parents[2]
READY = b"ready\n"
READY_WITHIN_S = 20.0
BROKE = b'{"error":{"message":"the model broke","type":"server_error","param":null,"code":"model_broke"}}'


async def play(peer: Peer) -> None:
    """The script: one request after another, until one ends in a way that a connection does not survive."""
    while True:
        request = await peer.request()
        if request.target == "/health":
            await peer.send(answer(200, b"{}"))
            continue
        body = json.loads(request.body)
        tell = _tell_in_events if body.get("stream") else _tell_whole
        if not await tell(peer, body, _fate(body)):
            return


async def _tell_in_events(peer: Peer, body: dict[str, Any], fate: Fate) -> bool:
    """Whether the connection is good for another request."""
    protocol = _Responses() if "input" in body else _Chat()
    if fate.end in ("status", "silence"):
        return await _say_nothing(peer, fate)
    await peer.send(OK_EVENTS, chunk(protocol.opening))
    for number in range(fate.words):
        await asyncio.sleep(fate.pause_s)
        await peer.send(chunk(protocol.say(word(number))))
    match fate.end:
        case "done":
            await peer.send(chunk(protocol.ending) + LAST_CHUNK)
            return True
        case "error":
            await peer.send(chunk(protocol.failing) + LAST_CHUNK)
            return True
        case "stall":
            await peer.closed()
        case "reset":
            await asyncio.sleep(0.05)  # a reset takes with it what the gateway has not read yet
            _reset(peer)
    return False


async def _tell_whole(peer: Peer, body: dict[str, Any], fate: Fate) -> bool:
    if fate.end in ("status", "silence"):
        return await _say_nothing(peer, fate)
    await asyncio.sleep(fate.pause_s * fate.words)
    said = {"message": {"role": "assistant", "content": "".join(fate.said)}, "index": 0, "finish_reason": "stop"}
    whole = answer(200, json.dumps({"id": "c", "object": "chat.completion", "choices": [said]}).encode())
    if fate.end == "done":
        await peer.send(whole)
        return True
    await peer.send(whole[:-10])
    if fate.end == "reset":
        _reset(peer)
    return False


async def _say_nothing(peer: Peer, fate: Fate) -> bool:
    if fate.end == "status":
        await asyncio.sleep(fate.pause_s)
        await peer.send(answer(500, BROKE))
        return True
    await peer.closed()
    return False


def _reset(peer: Peer) -> None:
    with suppress(OSError):  # the gateway has closed it meanwhile
        peer.reset()


def _fate(body: dict[str, Any]) -> Fate:
    said = body["input"] if "input" in body else body["messages"]
    return Fate.read(said[-1]["content"])


class _Chat:
    opening = ROLE
    ending = STOP + DONE
    failing = event(BROKE)

    def say(self, text: str) -> bytes:
        return content(text)


class _Responses:
    opening = event(b'{"type":"response.created","response":{"id":"resp_1","object":"response","output":[]}}')
    ending = event(
        b'{"type":"response.completed","response":{"id":"resp_1","object":"response","status":"completed","output":[]}}'
    )
    failing = event(
        b'{"type":"response.failed","response":{"id":"resp_1","status":"failed",'
        b'"error":{"code":"model_broke","message":"the model broke"}}}'
    )

    def say(self, text: str) -> bytes:
        return event(b'{"type":"response.output_text.delta","item_id":"i","delta":"%b"}' % text.encode())


class FatedModel:
    """The process, as a test sees it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns once it answers."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.fated_model", str(self._port)),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(READY_WITHIN_S):
            assert await self._process.stdout.readline() == READY

    async def kill(self) -> None:
        """SIGKILL: the kernel resets what was open, and refuses what comes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def fated_model() -> AsyncIterator[FatedModel]:
    """A running one, on a port that nobody else takes while it is dead."""
    with reserved_port() as port:
        model = FatedModel(port)
        try:
            await model.start()
            yield model
        finally:
            await model.kill()


async def _serve(port: int) -> None:
    async with scripted_upstream(play, ("127.0.0.1", port)) as upstream:
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        while True:
            upstream.requests.clear()  # a test elsewhere cannot look at them
            await asyncio.sleep(1)


if __name__ == "__main__":
    allow_many_files()
    asyncio.run(_serve(int(sys.argv[1])))
