"""The lane and the application: the same request gets the same answer and leaves the same record."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.support.raw_client import chat, get, post, raw_client
from tests.support.served import served
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
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.telemetry.record import RequestRecord

CHAT = "/v1/chat/completions"
LISTED, STRANGER = "Origin: https://app.example.com", "Origin: https://evil.test"
ROUTES = """
server: {{port: 0, max_body: 2KiB}}
auth: {{keys: [{{name: web, key: sk-web}}]}}
cors: {{origins: ["https://app.example.com"]}}
routes:
  m: {{replicas: ['{url}']}}
  gone: {{replicas: []}}
"""
KEY = "x-api-key: sk-web"


async def model_server(peer: Peer) -> None:
    """Streams where it is asked to, else answers in one piece."""
    while True:
        if b'"stream": true' in (await peer.request()).body:
            await peer.send(OK_EVENTS, chunk(ROLE + content("hi") + STOP + DONE) + LAST_CHUNK)
        else:
            await peer.send(answer(201, b'{"choices":[]}', b"X-Vendor: 1", b"Vary: Accept"))


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets of the requests that the application saw."""
    seen: list[str] = []
    handle = web.Application._handle

    async def listening(self: web.Application, request: web.Request) -> web.StreamResponse:
        seen.append(request.raw_path)
        return await handle(self, request)

    monkeypatch.setattr(web.Application, "_handle", listening)
    return seen


WHOLE = chat(stream=False)
ALIKE: dict[str, bytes] = {
    "an answer in one piece": post(CHAT, WHOLE, KEY),
    "a stream": post(CHAT, chat(), KEY),
    "a query": post(CHAT + "?beta=true", WHOLE, KEY),
    "another endpoint": post("/v1/embeddings", WHOLE, KEY),
    "its own request id": post(CHAT, WHOLE, KEY, "X-Request-ID: mine"),
    "a listed page": post(CHAT, WHOLE, KEY, LISTED),
    "a listed page's stream": post(CHAT, chat(), KEY, LISTED),
    "a listed page that fails": post(CHAT, {}, KEY, LISTED),
    "a foreign page": post(CHAT, WHOLE, KEY, STRANGER),
    "a foreign page that fails": post(CHAT, {}, KEY, STRANGER),
    "no key": post(CHAT, WHOLE),
    "no key for Anthropic": post("/v1/messages", WHOLE),
    "no JSON": post(CHAT, b"{", KEY),
    "no such model": post(CHAT, chat("x"), KEY),
    "no replica": post(CHAT, chat("gone"), KEY),
    "too large": post(CHAT, chat(user="x" * 2048), KEY),
    "compressed": post(CHAT, WHOLE, KEY, "Content-Encoding: gzip"),
    "an upgrade": post("/v1/embeddings", WHOLE, KEY, "Connection: Upgrade", "Upgrade: websocket"),
    "to be closed": post(CHAT, WHOLE, KEY, "Connection: close"),
    "an old client": post(CHAT, WHOLE, KEY).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an old client that stays": post(CHAT, WHOLE, KEY, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an old client's stream": post(CHAT, chat(), KEY).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a foreign host": post(CHAT, WHOLE, KEY).replace(b"Host: 127.0.0.1", b"Host: evil.test"),
}


def in_absolute_form(request: bytes) -> bytes:
    """The same request as proxies are asked, which the lane leaves to the application."""
    return request.replace(b"POST /", b"POST http://127.0.0.1/", 1)


async def told(request: bytes, port: int) -> tuple[list[str], bytes]:
    """The answer's head, line by line, and its body; less what differs from one answer to the next."""
    async with raw_client(port) as client:
        await client.send(request)
        if (b"HTTP/1.1" in request and b"Connection: close" not in request) or b"keep-alive" in request:
            await client.send(get("/v1/models", "Connection: close"))  # shows that the connection stayed
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    status, *lines = re.sub(r"req_[0-9a-f]{24}", "req_", head.decode()).split("\r\n")
    lines = [" ".join(sorted(re.split(": |,", line.lower()))) for line in lines if not line.startswith("Date: ")]
    return [status, *sorted(lines)], re.sub(rb"req_[0-9a-f]{24}|Date: [^\r]*\r\n", b"", body)


def lasting(record: RequestRecord) -> dict[str, Any]:
    """What does not differ from one request to the next."""
    changing = {"request_id", "started", "duration_ms", "ttft_ms", "last_event_ms"}
    return {name: getattr(record, name) for name in record.__slots__ if name not in changing}


@pytest.mark.parametrize("case", ALIKE)
async def test_the_lane_answers_as_the_application_does(case: str, tmp_path: Path, handled: list[str]) -> None:
    async with (
        scripted_upstream(model_server) as upstream,
        served(ROUTES.format(url=upstream.url), tmp_path) as gateway,
    ):
        by_lane = await told(ALIKE[case], gateway.port)
        records = [lasting(record) for record in gateway.records]
        assert [target for target in handled if target != "/v1/models"] == []
        gateway.records.clear()
        by_application = await told(in_absolute_form(ALIKE[case]), gateway.port)
        assert [target for target in handled if target != "/v1/models"] != []
    assert by_lane == by_application
    assert records == [lasting(record) for record in gateway.records]
    assert records[0]["method"] == "POST"


NOT_TAKEN = {
    "a GET": get(CHAT),
    "a preflight": get(CHAT, LISTED, "Access-Control-Request-Method: POST", method="OPTIONS"),
    "no segment": post("/v1/", WHOLE, KEY),
    "dots": post("/v1/../x", WHOLE, KEY),
    "an escape": post("/v1/chat%2fcompletions", WHOLE, KEY),
    "another root": post("/v2/chat/completions", WHOLE, KEY),
    "a client that asks first": post(CHAT, WHOLE, KEY, "Expect: 100-continue"),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
async def test_what_is_not_for_the_lane_goes_to_the_application(case: str, tmp_path: Path, handled: list[str]) -> None:
    async with (
        scripted_upstream(model_server) as upstream,
        served(ROUTES.format(url=upstream.url), tmp_path) as gateway,
    ):
        async with raw_client(gateway.port) as client:
            await client.send(NOT_TAKEN[case])
            line = (await client.reader.readline()).decode()
    assert line.startswith("HTTP/1.1 ")
    assert ("100 Continue" in line) == (case == "a client that asks first")
    assert len(handled) == 1
