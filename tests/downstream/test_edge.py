"""The outermost edge: every request gets one record, every error its words, in both shapes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientConnectionError, web

from proxy.access.keys import Keyring
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.downstream.edge import add_request_id, edge
from proxy.downstream.gate import Gate
from proxy.downstream.streamed import StreamedAnswer
from proxy.telemetry.record import EndState, RequestRecord
from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import Peer, answer, answering, answering_once, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_aiohttp import AiohttpClient

    from tests.support.raw_client import RawAnswer

CANARY = "canary-c0de"
KEYS = "auth: {keys: [{name: web, key: sk-web, models: [m]}]}\n"
DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms', other: demo://}\n"
OPEN_TO_ALL = Gate(HostPolicy((), loopback_bind=False), OriginPolicy((), loopback_bind=False), Keyring())
ENDPOINTS = ["/v1/chat/completions", "/v1/messages"]


def error(answered: RawAnswer, path: str) -> dict[str, object]:
    """The error in the shape of its endpoint, which is checked."""
    assert answered.headers["content-type"].startswith("application/json")
    said: dict[str, object] = json.loads(answered.body)
    detail = said["error"]
    assert isinstance(detail, dict)
    if path == "/v1/messages":
        assert list(said) == ["type", "error", "request_id"]
        assert said["type"] == "error"
        assert said["request_id"] == answered.headers["x-request-id"]
        assert list(detail) == ["type", "message"]
    else:
        assert list(said) == ["error"]
        assert list(detail) == ["message", "type", "param", "code"]
    return detail


REFUSED: dict[str, tuple[int, str, str, tuple[object, ...]]] = {
    "not JSON": (400, "invalid_json", "invalid_request_error", (f'{{"model": {CANARY}'.encode(),)),
    "not an object": (400, "invalid_json", "invalid_request_error", (f'["{CANARY}"]'.encode(),)),
    "not UTF-8": (400, "invalid_json", "invalid_request_error", (b'{"model":"\xff canary-c0de"}',)),
    "empty": (400, "invalid_json", "invalid_request_error", (b"",)),
    "no model": (400, "missing_model", "invalid_request_error", ({"messages": [CANARY]},)),
    "two models": (400, "invalid_request", "invalid_request_error", (b'{"model":"m","model":"canary-c0de"}',)),
    "bad stream": (400, "invalid_request", "invalid_request_error", ({"model": "m", "stream": CANARY},)),
    "no key": (401, "invalid_api_key", "authentication_error", (chat(),)),
    "bad key": (401, "invalid_api_key", "authentication_error", (chat(), f"Authorization: Bearer {CANARY}")),
    "another's model": (403, "model_not_allowed", "permission_error", (chat("other"),)),
    "unknown model": (404, "model_not_found", "invalid_request_error", (chat(CANARY),)),
    "compressed": (415, "unsupported_encoding", "invalid_request_error", (chat(), f"Content-Encoding: {CANARY}")),
    "foreign host": (403, "host_not_allowed", "permission_error", (chat(), f"X-Forwarded-Host: {CANARY}")),
}
ANTHROPIC_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_of_ours_is_refused_in_its_endpoints_words_which_repeat_nothing(
    case: str, path: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    status, code, type_, (body, *headers) = REFUSED[case]
    key = [] if case in ("no key", "bad key") else ["x-api-key: sk-web"]
    request = post(path, body, *key, *map(str, headers))
    if case == "foreign host":
        request = request.replace(b"Host: 127.0.0.1", f"Host: {CANARY}.test".encode())
    async with served(DEMO + KEYS, tmp_path) as gateway:
        answered = await ask(gateway.port, request)
    detail = error(answered, path)
    assert answered.status == status
    assert detail["type"] == (ANTHROPIC_TYPES.get(status, type_) if path == "/v1/messages" else type_)
    assert detail.get("code", code) == code
    assert answered.headers["x-penstock-source"] == "gateway"
    assert answered.headers["x-request-id"].startswith("req_")
    assert not {"x-penstock-replica", "x-penstock-attempts", "retry-after"} & set(answered.headers)
    assert CANARY not in str(answered) + quiet_log.text + repr(gateway.records)
    [record] = gateway.records
    assert (record.status, record.end_state, record.bytes_out) == (status, EndState.REJECTED, len(answered.body))


async def test_an_unknown_model_is_told_the_ones_its_key_may_use(tmp_path: Path) -> None:
    async with served(DEMO + KEYS, tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/chat/completions", chat("x"), "x-api-key: sk-web"))
    assert error(answered, "")["message"] == "The model does not exist here. Available models: m."
    assert (gateway.records[0].route, gateway.records[0].model, gateway.records[0].key) == ("unknown", "unknown", "web")


UPSTREAM_FAULTS: dict[str, tuple[int, str, EndState, bytes]] = {
    "garbage": (502, "upstream_invalid", EndState.UPSTREAM_ERROR, b"garbage\r\n\r\n"),
    "redirect": (502, "upstream_invalid", EndState.UPSTREAM_ERROR, b"HTTP/1.1 302 F\r\nLocation: http://x\r\n\r\n"),
    "compressed": (
        *(502, "upstream_invalid", EndState.UPSTREAM_ERROR),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\n\x1f",
    ),
    "closed": (502, "upstream_unreachable", EndState.UPSTREAM_ERROR, b""),
    "cut": (502, "upstream_truncated", EndState.UPSTREAM_TRUNCATED, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", UPSTREAM_FAULTS)
async def test_a_fault_upstream_is_told_with_the_route_and_no_address(case: str, path: str, tmp_path: Path) -> None:
    status, code, end_state, sent = UPSTREAM_FAULTS[case]
    async with (
        scripted_upstream(answering_once(sent)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        answered = await ask(gateway.port, post(path, chat()))
        port = upstream.url.rpartition(":")[2]
    detail = error(answered, path)
    assert answered.status == status
    assert detail.get("code", code) == code
    assert 'route "m": replica 0: ' in str(detail["message"])
    assert port not in answered.body.decode()
    names = {name: answered.headers[name] for name in answered.headers if name.startswith("x-penstock")}
    assert int(names.pop("x-penstock-attempts")) >= 1
    assert names == {"x-penstock-source": "gateway", "x-penstock-route": "m", "x-penstock-replica": "0"}
    [record] = gateway.records
    assert (record.status, record.end_state, record.route, record.replica) == (status, end_state, "m", 0)


async def test_nobody_there_is_a_502(tmp_path: Path) -> None:
    async with scripted_upstream(answering(b"")) as upstream:
        gone = upstream.url
    async with served(one_route(gone), tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/chat/completions", chat()))
    assert (answered.status, error(answered, "")["code"]) == (502, "upstream_unreachable")


async def test_silence_is_a_504(tmp_path: Path) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    timeouts = "timeouts: {first_token: 30ms}"
    async with scripted_upstream(silent) as upstream, served(one_route(upstream.url, timeouts), tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/chat/completions", chat()))
    assert (answered.status, error(answered, "")["code"]) == (504, "first_token_timeout")
    assert gateway.records[0].end_state is EndState.FIRST_TOKEN_TIMEOUT


async def test_a_route_without_replicas_is_a_503(tmp_path: Path) -> None:
    async with served("server: {port: 0}\nroutes: {m: {replicas: []}}\n", tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/chat/completions", chat()))
    assert (answered.status, error(answered, "")["code"]) == (503, "no_replica_available")
    assert answered.headers["x-penstock-route"] == "m"
    assert gateway.records[0].end_state is EndState.SHED


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("my-id_1.2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("a\tb", False),
        ("", False),
        ("ü", False),
    ],
)
@pytest.mark.parametrize("model", ["m", "unknown"])
async def test_the_clients_request_id_is_kept_if_it_can_stand_anywhere(
    given: str, kept: bool, model: str, tmp_path: Path
) -> None:
    async with (
        scripted_upstream(answering(answer(200, b"{}", b"x-request-id: theirs"))) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        answered = await ask(gateway.port, post("/v1/embeddings", {"model": model}, f"X-Request-ID: {given}"))
        sent_on = [request.header("x-request-id") for request in upstream.requests]
    got = answered.headers["x-request-id"]
    assert (got == given) == kept
    assert kept or got.startswith("req_")
    assert sent_on == ([got] if model == "m" else [])
    assert gateway.records[0].request_id == got


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/nothing", 404, "not_found"),
        ("BREW", "/v1/models", 400, "invalid_request"),
        ("GET", "/v1/models/canary-c0de", 404, "model_not_found"),
    ],
)
async def test_what_is_not_served_is_said_so(method: str, path: str, status: int, code: str, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        answered = await ask(gateway.port, get(path, method=method), method)
    assert (answered.status, error(answered, path)["code"]) == (status, code)
    assert CANARY not in answered.body.decode()


async def test_head_has_the_status_and_no_body(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        for path, status in (("/v1/models", 200), ("/nothing", 404), ("/v1/chat/completions", 405), ("/healthz", 200)):
            await client.send(get(path, method="HEAD"))
            answered = await client.answer("HEAD")
            assert (answered.status, answered.body, answered.whole) == (status, b"", True)


async def test_every_request_leaves_one_record_and_health_leaves_none(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        bodies = []
        for path in ("/healthz", "/v1/models", "/readyz", "/nothing", "/"):
            await client.send(get(path))
            bodies.append((await client.answer("GET")).body)
    assert [(record.path, record.status, record.bytes_out) for record in gateway.records] == [
        ("/v1/models", 200, len(bodies[1])),
        ("/nothing", 404, len(bodies[3])),
        ("/", 200, len(bodies[4])),
    ]
    assert [record.end_state for record in gateway.records] == ["completed", "rejected", "completed"]


async def test_an_upgrade_where_nobody_speaks_websocket_is_a_426(tmp_path: Path) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    async with served(DEMO, tmp_path) as gateway:
        for path in ("/v1/messages", "/", "/nothing", "/healthz"):
            async with raw_client(gateway.port) as client:
                await client.send(get(path, *upgrade))
                answered = await client.answer("GET")
                assert await client.rest() == b""
            assert (answered.status, answered.headers["connection"]) == (426, "close")
            assert path == "/v1/messages" or error(answered, path)["code"] == "upgrade_required"


async def test_a_failure_of_ours_is_logged_with_its_traceback_and_told_without(
    aiohttp_client: AiohttpClient, quiet_log: pytest.LogCaptureFixture
) -> None:
    records: list[RequestRecord] = []

    async def broken(request: web.Request) -> web.StreamResponse:
        raise RuntimeError(CANARY)

    app = web.Application(middlewares=[edge(OPEN_TO_ALL, (), records.append)])
    app.router.add_get("/broken", broken)
    app.on_response_prepare.append(add_request_id)
    client = await aiohttp_client(app)
    async with client.get("/broken") as answered:
        body = await answered.text()
    assert (answered.status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert answered.headers["Server"] == "penstock"
    assert CANARY not in body
    assert (records[0].status, records[0].end_state) == (500, EndState.ERROR)
    assert "Traceback" in quiet_log.text
    assert records[0].request_id in quiet_log.text
    quiet_log.clear()


async def test_a_failure_of_ours_in_a_begun_answer_ends_the_connection_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_log: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(StreamedAnswer, "follow", broken)
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", chat()))
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b""  # no last chunk: the client sees that it is not whole
    assert [record.status for record in gateway.records] == [500]
    assert "Traceback" in quiet_log.text
    quiet_log.clear()


async def test_a_client_that_is_lost_while_it_is_answered_is_no_failure_of_ours(
    aiohttp_client: AiohttpClient, quiet_log: pytest.LogCaptureFixture
) -> None:
    records: list[RequestRecord] = []

    async def lost(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app = web.Application(middlewares=[edge(OPEN_TO_ALL, (), records.append)])
    app.router.add_get("/lost", lost)
    client = await aiohttp_client(app)
    with pytest.raises(ClientConnectionError):
        await client.get("/lost")
    assert [(record.status, record.end_state) for record in records] == [(499, EndState.CLIENT_CLOSED)]


async def test_a_method_that_is_not_allowed_is_told_which_ones_are(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        answered = await ask(gateway.port, get("/v1/chat/completions", method="PUT"), "PUT")
    assert set(answered.headers["allow"].split(",")) == {"GET", "OPTIONS", "POST"}
