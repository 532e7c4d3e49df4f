"""What a client sees of one chat, whatever it came over: the same few facts for HTTP, server-sent events and the bare
WebSocket dialect."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import websockets

from tests.support.raw_client import RawAnswer, ask, chat, post
from tests.support.served import Served

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Seen:
    """`status`: the answer's, or the one an error frame names; 200 for a stream that began. `said`: the text of each
    content event. `errors`: the error objects that were told. `done`: `[DONE]` came. `whole`: the answer ended as its
    framing asks. `headers` are an HTTP answer's."""

    status: int
    said: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    whole: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str | None:
        """The code of the only error."""
        [error] = self.errors
        code: str | None = error["code"]
        return code


Client = Callable[[Served], Awaitable[Seen]]
"""Asks the route `m` for one chat, to its end."""


async def over_http(gateway: Served) -> Seen:
    answer = await ask(gateway.port, post(CHAT, chat(stream=False)))
    return _whole(answer)


async def over_sse(gateway: Served) -> Seen:
    answer = await ask(gateway.port, post(CHAT, chat()))
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        return _whole(answer)
    seen = Seen(answer.status, whole=answer.whole, headers=answer.headers)
    for block in answer.body.split(b"\n\n"):
        for line in block.splitlines():
            if line.startswith(b"data: "):
                _add(seen, line[6:].decode("utf-8", "replace"))
    return seen


async def over_bare(gateway: Served) -> Seen:
    """The socket must live through it all: afterwards a second request is served, up to whatever comes of it."""
    seen = Seen(200)
    async with websockets.connect(gateway.ws_url + "/v1/ws", max_size=None) as socket:
        await socket.send(json.dumps(chat()))
        while not (seen.done or seen.errors):
            frame = await socket.recv()
            assert isinstance(frame, str)
            _add(seen, frame)
        await socket.send('{"type":"cancel"}')
        await (await socket.ping())
    return seen


def _whole(answer: RawAnswer) -> Seen:
    seen = Seen(answer.status, whole=answer.whole, headers=answer.headers)
    said = json.loads(answer.body) if answer.body else {}
    if answer.status >= 400:
        seen.errors.append(said["error"])
        return seen
    seen.done = True
    seen.said = [choice["message"]["content"] for choice in said["choices"]]
    return seen


def _add(seen: Seen, data: str) -> None:
    """One event's data."""
    if data == "[DONE]":
        seen.done = True
        return
    told = json.loads(data)
    if "error" in told:
        seen.errors.append(told["error"])
        seen.status = told.get("status", seen.status)
        return
    seen.said += [text for choice in told["choices"] if (text := choice["delta"].get("content"))]
