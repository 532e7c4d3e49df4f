"""The API over HTTP: what crosses, which paths, what is listed, one request after another on one connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    answer,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

CREDENTIALS = {"authorization": "Bearer sk-canary-1", "x-api-key": "sk-canary-2", "api-key": "sk-canary-3"}
STREAM = (OK_EVENTS, chunk(ROLE + content("one")), chunk(content("two")), chunk(STOP + DONE), LAST_CHUNK)
BODY = ROLE + content("one") + content("two") + STOP + DONE

KEPT = {
    "anthropic-beta": "tools-2024, other",
    "anthropic-version": "2023-06-01",
    "openai-beta": "responses=v1",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "user-agent": "test/1",
    "accept": "text/event-stream",
    "x-custom": "caf\u00e9",
}
DROPPED = {
    **CREDENTIALS,
    "cookie": "session=canary",
    "origin": "http://localhost:3000",
    "referer": "http://localhost:3000/canary",
    "x_under_score": "canary",
    "te": "trailers",
    "x-hop": "canary",
    "keep-alive": "timeout=5",
    "proxy-authorization": "canary",
    "sec-fetch-site": "cross-site",
    "x-penstock-attempts": "9",
}


async def test_only_what_the_upstream_should_know_crosses(tmp_path: Path) -> None:
    headers = [f"{name}: {value}" for name, value in (KEPT | DROPPED).items()]
    headers += ["Connection: X-Hop, keep-alive", "Accept-Encoding: gzip"]
    body = b'{ "model" : "m",\n "x-unknown": [1.0, 1e400, "\\u00e9"], "stream":false }'
    settings = ("model: real-name",)
    async with (
        scripted_upstream(answering(answer(200, b"{}"))) as upstream,
        served(one_route(upstream.url, *settings), tmp_path) as gateway,
    ):
        request = post("/v1/embeddings?beta=true", body, *headers)
        assert (await ask(gateway.port, request)).status == 200
        [received] = upstream.requests
        host = upstream.url.removeprefix("http://")
    for name, value in KEPT.items():
        assert received.headers(name) == [value], name
    for name in DROPPED:
        assert received.headers(name) == [], name
    assert received.target == "/v1/embeddings?beta=true"
    assert received.headers("host") == [host]
    assert received.headers("accept-encoding") == ["identity"]
    assert received.headers("connection") == []
    assert received.headers("content-length") == [str(len(received.body))]
    assert received.body == body.replace(b'"m"', b'"real-name"')
    assert b"canary" not in received.head + received.body


async def test_passthrough_sends_the_clients_own_credentials_and_nothing_else_more(tmp_path: Path) -> None:
    headers = ["Connection: X-Hop", *(f"{name}: {value}" for name, value in DROPPED.items())]
    async with (
        scripted_upstream(answering(answer(200, b"{}"))) as upstream,
        served(one_route(upstream.url, "auth: passthrough"), tmp_path) as gateway,
    ):
        assert (await ask(gateway.port, post("/v1/embeddings", {"model": "m"}, *headers))).status == 200
        [received] = upstream.requests
    assert {name: received.header(name) for name in CREDENTIALS} == CREDENTIALS
    for name in set(DROPPED) - set(CREDENTIALS):
        assert received.headers(name) == [], name


async def test_a_replicas_key_goes_to_it_and_nowhere_else(tmp_path: Path) -> None:
    echo = answering(answer(200, b"{}", b"X-Vendor: 1"))
    async with scripted_upstream(echo) as first, scripted_upstream(echo) as second:
        routes = f"""
server: {{port: 0}}
routes:
  m: {{replicas: [{{url: '{first.url}', api_key: sk-canary-first, headers: {{X-Team: search}}}}]}}
  n: {{replicas: ['{second.url}']}}
"""
        async with served(routes, tmp_path) as gateway:
            for model in ("m", "n"):
                answered = await ask(gateway.port, post("/v1/embeddings", {"model": model}, "X-Team: mine"))
                assert "canary" not in str(answered)
    assert first.requests[0].headers("authorization") == ["Bearer sk-canary-first"]
    assert first.requests[0].headers("x-team") == ["search"]
    assert second.requests[0].headers("authorization") == []
    assert second.requests[0].headers("x-team") == ["mine"]


STRIPPED = {
    "Server": "vendor/1",
    "Set-Cookie": "a=b",
    "Location": "http://10.0.0.1/",
    "Alt-Svc": "h3",
    "Strict-Transport-Security": "max-age=1",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Credentials": "true",
    "X-Hop": "1",
    "Keep-Alive": "timeout=5",
    "X-Penstock-Route": "forged",
    "X-Accel-Buffering": "yes",
}


@pytest.mark.parametrize("status", [200, 201, 400, 404, 429, 500, 503])
async def test_an_answer_in_one_piece_passes_with_its_status_less_what_would_act_in_our_name(
    status: int, tmp_path: Path
) -> None:
    headers = [f"{name}: {value}".encode() for name, value in STRIPPED.items()]
    body = b'{"error": {"message": "theirs"},\n "n": 1.0}'
    sent = answer(status, body, *headers, b"Connection: X-Hop", b"Retry-After: 7", b"X-Vendor: 1", b"X-Vendor: 2")
    async with scripted_upstream(answering(sent)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat(stream=False)))
            head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
            got = await client.reader.readexactly(len(body))
        [record] = gateway.records
    names = [line.partition(":")[0].lower() for line in head.split("\r\n")[1:]]
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert got == body
    assert names.count("x-vendor") == 2
    assert "retry-after: 7" in head.lower()
    assert "Server: penstock\r\n" in head
    for name, value in STRIPPED.items():
        assert f"{name}: {value}".lower() not in head.lower()
    for line in ("x-penstock-source: upstream", "x-penstock-route: m", "x-penstock-replica: 0"):
        assert line in head
    ends = {2: EndState.COMPLETED, 4: EndState.UPSTREAM_REJECTED, 5: EndState.UPSTREAM_ERROR}
    assert (record.status, record.end_state, record.bytes_out) == (status, ends[status // 100], len(body))


async def test_an_error_event_before_any_content_gets_its_own_status(tmp_path: Path) -> None:
    failure = b'data: {"error":{"message":"full","code":429}}\n\n'
    async with (
        scripted_upstream(answering(OK_EVENTS, chunk(ROLE + failure), LAST_CHUNK)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        answered = await ask(gateway.port, post("/v1/chat/completions", chat()))
    assert answered.status == 429
    assert answered.headers["content-type"] == "application/json"
    assert json.loads(answered.body) == {"error": {"message": "full", "code": 429}}
    assert gateway.records[0].end_state is EndState.UPSTREAM_ERROR


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../x",
        "/v1/./chat/completions",
        "/v1/%2e%2e/x",
        "/v1/%2E%2E%2fx",
        "/v1/chat%2fcompletions",
        "/v1//chat/completions",
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat\\completions",
        "/v1/..\\x",
        "/v1/caf\u00e9",
        "/v1/caf%C3%A9",
        "/v1/x;y",
        "/v1/x@y",
        "/v1/x%00",
        "/v1/x%0d%0aHost:%20evil",
        "/v1/.hidden",
        "/v2/chat/completions",
        "/V1/chat/completions",
    ],
)
async def test_no_other_path_than_a_plain_one_goes_upstream(path: str, tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(answer(200, b"{}"))) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        answered = await ask(gateway.port, post(path, {"model": "m"}))
        assert upstream.connections == 0
    assert answered.status in (400, 404, 405)
    assert "evil" not in answered.body.decode()


@pytest.mark.parametrize(
    "model",
    ["http://evil.test/", "../m", "m@evil", "m\r\nHost: evil", "m" * 10_000, "\u043c", "m ", "M", "m\0", "*", "\ud800"],
)
async def test_a_model_is_a_name_and_never_a_part_of_a_url(
    model: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    async with (
        scripted_upstream(answering(answer(200, b"{}"))) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        answered = await ask(gateway.port, post("/v1/embeddings", {"model": model}))
        assert upstream.connections == 0
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (404, "model_not_found")
    assert model.strip("m* M\0\r\n") == "" or model not in answered.body.decode() + quiet_log.text
    assert (gateway.records[0].route, gateway.records[0].model) == ("unknown", "unknown")


async def test_a_connection_serves_one_request_after_another_whatever_the_last_one_was(tmp_path: Path) -> None:
    async with scripted_upstream(answering(*STREAM)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            for _ in range(3):
                await client.send(post("/v1/chat/completions", chat()))
                answered = await client.answer()
                assert (answered.status, answered.body, answered.whole) == (200, BODY, True)
                for request, status in ((get("/v1/models"), 200), (post("/v1/embeddings", {}), 400), (get("/x"), 404)):
                    await client.send(request)
                    assert (await client.answer("GET")).status == status
        assert upstream.connections == 1
    assert [record.status for record in gateway.records] == [200, 200, 400, 404] * 3


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]

    async def script(peer: Peer) -> None:
        while True:
            name = json.loads((await peer.request()).body)["user"]
            await peer.send(OK_EVENTS, chunk(content(name)), chunk(STOP + DONE), LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(b"".join(post("/v1/chat/completions", chat(user=name)) for name in names))
            answers = [await client.answer() for _ in names]
    assert [answered.body for answered in answers] == [content(name) + STOP + DONE for name in names]
    assert [record.status for record in gateway.records] == [200] * 4


async def test_the_record_of_a_stream_tells_what_happened(tmp_path: Path) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    pieces = (OK_EVENTS, chunk(ROLE + content("one")), chunk(STOP + usage + DONE), LAST_CHUNK)
    async with scripted_upstream(answering(*pieces)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            request = post("/v1/chat/completions", chat(stream_options={"include_usage": True}))
            await client.send(request)
            answered = await client.answer()
    [record] = gateway.records
    assert answered.whole
    assert (record.method, record.path, record.route, record.model) == ("POST", "/v1/chat/completions", "m", "m")
    assert (record.status, record.end_state, record.transport) == (200, EndState.COMPLETED, "sse")
    assert (record.replica, record.attempts, record.events) == (0, 1, 5)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (3, 2, False)
    assert record.bytes_in == len(request.partition(b"\r\n\r\n")[2])
    assert 0 < (record.ttft_ms or 0) <= (record.duration_ms or 0)
