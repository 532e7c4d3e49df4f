"""Responses over a WebSocket: a scripted model server's events, a session to read them in, what Codex says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websockets

from tests.support.served import Served, one_route, served
from tests.support.upstream import (
    LAST_CHUNK,
    OK_EVENTS,
    Peer,
    Received,
    Script,
    ScriptedUpstream,
    chunk,
    scripted_upstream,
)

PATIENCE_S = 5.0
TERMINALS = {"response.completed", "response.incomplete", "response.failed", "error"}

CODEX_HEADERS = {
    "OpenAI-Beta": "responses_websockets=2026-02-06",
    "originator": "codex_cli_rs",
    "version": "0.146.0",
    "User-Agent": "codex_cli_rs/0.146.0 (Debian 12.0.0; x86_64) xterm",
    "session_id": "0199a1b2-0000-7000-8000-000000000001",
    "x-codex-turn-state": "turn-state-1",
    "x-codex-turn-metadata": '{"turn_id":"1"}',
    "x-codex-beta-features": "a,b",
}
"""What Codex says with its upgrade, credentials aside."""

CODEX_REQUEST: dict[str, Any] = {
    "type": "response.create",
    "model": "m",
    "instructions": "You are a coding model.",
    "previous_response_id": "resp_0",
    "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix the test."}]}],
    "tools": [{"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a1b2-0000-7000-8000-000000000001",
    "text": {"verbosity": "low"},
    "generate": False,
    "client_metadata": {"x-codex-window-id": "w:0"},
}
"""A request of Codex's, with every member that it sends."""


def create(text: str = "hi", **members: Any) -> str:
    """A `response.create` with one text as its input."""
    return json.dumps({"type": "response.create", "model": "m", "input": [user(text)], **members})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    """The item that a model's answer is."""
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": f"msg_{text}", "role": "assistant", "status": "completed", "content": [part]}


def sse(type: str, **members: Any) -> bytes:
    """An event as OpenAI and vLLM write it."""
    data = json.dumps({"type": type, **members}, separators=(",", ":")).encode()
    return b"event: %b\ndata: %b\n\n" % (type.encode(), data)


def created(id: str = "resp_1") -> bytes:
    response = {"id": id, "object": "response", "created_at": 1, "model": "m", "status": "in_progress", "output": []}
    return sse("response.created", sequence_number=0, response=response)


def delta(text: str = "hello") -> bytes:
    return sse("response.output_text.delta", sequence_number=1, item_id="i", delta=text)


def completed(id: str = "resp_1", text: str = "hello") -> bytes:
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    response = {"id": id, "object": "response", "status": "completed", "output": [said(text)], "usage": usage}
    return sse("response.completed", sequence_number=2, response=response)


def data_of(*events: bytes) -> list[Any]:
    """The events' data, decoded: what the frames must be."""
    return [json.loads(event.partition(b"data: ")[2]) for event in events]


async def give(peer: Peer, *events: bytes) -> None:
    """A whole answer of these events."""
    await peer.send(OK_EVENTS, chunk(b"".join(events)), LAST_CHUNK)


def numbered() -> Script:
    """A script whose answers are resp_1, resp_2 … in the order the requests come, each saying its number."""
    count = 0

    async def script(peer: Peer) -> None:
        nonlocal count
        while True:
            await peer.request()
            count += 1
            await give(peer, created(f"resp_{count}"), delta(str(count)), completed(f"resp_{count}", str(count)))

    return script


def prompt(request: Received) -> str:
    """The text of the last item that was asked with."""
    text = json.loads(request.body)["input"][-1]["content"]
    assert isinstance(text, str)
    return text


class Gated:
    """A script that answers each request with its prompt, in two parts: the second when `let` that prompt `go`.

    `begun` are the prompts that came, in order.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

    def let(self, *prompts: str) -> None:
        for text in prompts:
            self._gates.setdefault(text, asyncio.Event()).set()

    async def __call__(self, peer: Peer) -> None:
        while True:
            text = prompt(await peer.request())
            self.begun.append(text)
            await peer.send(OK_EVENTS, chunk(created(f"resp_{text}") + delta(text)))
            await self._gates.setdefault(text, asyncio.Event()).wait()
            await peer.send(chunk(completed(f"resp_{text}", text)), LAST_CHUNK)


@dataclass(slots=True)
class ResponsesClient:
    """One socket to a gateway with one scripted replica."""

    socket: websockets.ClientConnection
    gateway: Served
    upstream: ScriptedUpstream

    async def send(self, *messages: str) -> None:
        for message in messages:
            await self.socket.send(message)

    async def frame(self) -> Any:
        """The next frame, decoded."""
        async with asyncio.timeout(PATIENCE_S):
            return json.loads(await self.socket.recv())

    async def until(self, *types: str) -> list[Any]:
        """The frames up to the first of one of these types."""
        frames = [await self.frame()]
        while frames[-1]["type"] not in types:
            frames.append(await self.frame())
        return frames

    async def answer(self) -> list[Any]:
        """The frames up to a response's last."""
        return await self.until(*TERMINALS)

    async def ask(self, text: str = "hi", **members: Any) -> list[Any]:
        await self.send(create(text, **members))
        return await self.answer()

    async def silent(self, for_s: float = 0.02) -> bool:
        """Whether nothing comes for so long."""
        try:
            await asyncio.wait_for(self.socket.recv(), for_s)
        except TimeoutError:
            return True
        return False

    def asked(self, number: int = -1) -> Any:
        """The body of the request that the replica got."""
        return json.loads(self.upstream.requests[number].body)

    async def closed(self) -> tuple[int | None, str | None]:
        """How the gateway closes the socket."""
        async with asyncio.timeout(PATIENCE_S):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def responses_session(
    script: Script,
    tmp_path: Path,
    *settings: str,
    server: str = "port: 0",
    headers: dict[str, str] | None = None,
) -> AsyncIterator[ResponsesClient]:
    """A socket to a gateway whose only replica plays `script`."""
    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, *settings, server=server), tmp_path) as gateway,
        websockets.connect(
            gateway.ws_url + "/v1/responses", max_size=None, close_timeout=1, additional_headers=headers
        ) as socket,
    ):
        yield ResponsesClient(socket, gateway, upstream)


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until this is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.001)
