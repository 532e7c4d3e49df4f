"""A model's rounds, scripted: an upstream that answers each request with the next answer, and what it says in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.config.loader import load
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import build_table
from proxy.telemetry.record import RequestRecord
from proxy.toolchain.rounds import Exchanges, RoundAnswer
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    Peer,
    Script,
    ScriptedUpstream,
    answer,
    chunk,
    event,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Go."}], "stream": True}


def said(number: int = 0, **delta: Any) -> bytes:
    """A chunk of round `number` with this delta."""
    return piece(number, {"index": 0, "delta": delta, "finish_reason": None})


def finished(reason: str, number: int = 0) -> bytes:
    return piece(number, {"index": 0, "delta": {}, "finish_reason": reason})


def piece(number: int, *choices: dict[str, Any], **members: Any) -> bytes:
    shape = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": number, "model": "big"}
    return json.dumps({**shape, "choices": choices, **members}).encode()


def call(name: str, arguments: str = "{}", *, index: int = 0, id: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": id or f"call_{name}_{index}", "type": "function", "function": function}


def texts(*words: str, number: int = 0) -> list[bytes]:
    """A round that says these words."""
    chunks = [said(number, role="assistant", content=""), *(said(number, content=word) for word in words)]
    return [*chunks, finished("stop", number)]


def calls(*made: dict[str, Any], number: int = 0) -> list[bytes]:
    """A round that makes these calls."""
    opening = said(number, role="assistant", content=None)
    return [opening, *(said(number, tool_calls=[each]) for each in made), finished("tool_calls", number)]


def streamed(chunks: list[bytes]) -> bytes:
    """A whole streamed answer."""
    events = b"".join(event(data) for data in chunks)
    return OK_EVENTS + chunk(events + DONE) + LAST_CHUNK


def whole(content: str | None = None, *made: dict[str, Any], usage: dict[str, int] | None = None) -> bytes:
    """A whole answer in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if made:
        message["tool_calls"] = [{key: value for key, value in each.items() if key != "index"} for each in made]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if made else "stop"}
    completion = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}
    return answer(200, json.dumps({**completion, **({"usage": usage} if usage else {})}).encode())


@dataclass(slots=True)
class Model:
    """`bodies` are the requests, decoded. `opened` and `closed` count the exchanges that were asked for."""

    upstream: ScriptedUpstream
    relay: Relay
    hung_up: asyncio.Event
    opened: int = 0
    closed: int = 0

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.body) for request in self.upstream.requests]

    @property
    def exchanges(self) -> Exchanges:
        return exchanges_of(self.relay, self._count)

    def _count(self, opened: int, closed: int) -> None:
        self.opened += opened
        self.closed += closed

    def nothing_is_left(self) -> None:
        assert self.opened == self.closed
        replicas = [replica for route in self.relay.table.routes for replica in route.replicas]
        assert [replica.in_flight for replica in replicas] == [0]


def exchanges_of(relay: Relay, count: Callable[[int, int], None] = lambda opened, closed: None) -> Exchanges:
    """The way to the models of a relay; `count` is told of each exchange that is opened or closed."""
    records: dict[int, tuple[Answer, RequestRecord]] = {}

    async def open(body: bytes) -> RoundAnswer:
        request = ProxyRequest("/v1/chat/completions", "", (), (), RequestBody.parse(body), "req_1")
        record = RequestRecord("req_1", "POST", "/stream/v1/toolchain", asyncio.get_running_loop().time())
        given = await relay.open(request, relay.route(request, None, record), record)
        records[id(given)] = given, record
        count(1, 0)
        return given

    def close(given: RoundAnswer) -> None:
        count(0, 1)
        relay.close(*records[id(given)])

    return Exchanges(open, close)


def rounds_script(*answers: bytes, then: str = "close", hung_up: asyncio.Event | None = None) -> Script:
    """A model that gives these answers to its requests, one by one, over whatever connections; `then` it closes,
    resets, or hangs, and `hung_up` is set when the gateway has closed."""
    waiting = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            data = waiting.pop(0) if waiting else b""
            await peer.send(data)
            if not waiting and not data.endswith(LAST_CHUNK) and b"Content-Length" not in data:
                break
        if then == "hang":
            await peer.closed()
            if hung_up is not None:
                hung_up.set()
        elif then == "reset":
            peer.reset()

    return script


@asynccontextmanager
async def model(tmp_path: Path, *answers: bytes, then: str = "close") -> AsyncIterator[Model]:
    """A model that gives these answers to its requests, one by one; `then` it closes, resets, or hangs."""
    hung_up = asyncio.Event()
    async with scripted_upstream(rounds_script(*answers, then=then, hung_up=hung_up)) as upstream:
        file = tmp_path / "routes.yaml"
        route = f'replicas: ["{upstream.url}"], health: none, retry: {{attempts: 1}}'
        file.write_text(f"routes: {{m: {{{route}}}}}", encoding="utf-8")
        pool = Pool()
        dispatch = Dispatch(pool, max_event_bytes=1 << 24, on_malformed=lambda _: None)
        built = Model(upstream, Relay(build_table(load(file, {})), dispatch), hung_up)
        try:
            yield built
        finally:
            await pool.close()
