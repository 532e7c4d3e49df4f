"""The gate: names we are asked for, pages that ask, keys in their three forms, proxies whose word counts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import answer, answering, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.raw_client import RawAnswer

KEY = "sk-canary-5e11"
OTHER = "sk-canary-other"
LISTED = "https://app.example.com"
ROUTES = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms', m-2: demo://, other: 'demo://?tokens=1&first=1ms'}\n"
AUTH = f"""
auth:
  keys:
    - {{name: plain, key: {KEY}, models: ["m*"]}}
    - {{name: hashed, key_sha256: {hashlib.sha256(OTHER.encode()).hexdigest()}}}
    - {{name: filed, key_file: secret, models: [other]}}
cors: {{origins: ["{LISTED}"]}}
"""


def code(answered: RawAnswer) -> tuple[int, str]:
    return answered.status, json.loads(answered.body)["error"]["code"]


@pytest.fixture
def secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sk-from-file\n")


FORMS = ["Authorization: Bearer {}", "authorization: bearer   {}", "x-api-key: {}", "api-key: {}"]


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("key", "name", "models"),
    [(KEY, "plain", ["m", "m-2"]), (OTHER, "hashed", ["m", "m-2", "other"]), ("sk-from-file", "filed", ["other"])],
)
async def test_a_key_in_any_form_opens_its_own_models(
    key: str, name: str, models: list[str], form: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    header = form.format(key)
    async with served(ROUTES + AUTH, tmp_path) as gateway:
        listing = await ask(gateway.port, get("/v1/models", header), "GET")
        assert [model["id"] for model in json.loads(listing.body)["data"]] == models
        for model in ("m", "m-2", "other"):
            one = await ask(gateway.port, get(f"/v1/models/{model}", header), "GET")
            assert one.status == (200 if model in models else 404)
        allowed = await ask(gateway.port, post("/v1/chat/completions", chat(models[0], stream=False), header))
        assert allowed.status == 200
    assert {record.key for record in gateway.records} == {name}
    assert key not in quiet_log.text + repr(gateway.records)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    "headers",
    [
        (),
        (f"Authorization: {KEY}",),
        (f"Authorization: Basic {KEY}",),
        ("Authorization: Bearer",),
        (f"Authorization: Bearer {KEY}x",),
        ("Authorization: Bearer wrong", f"x-api-key: {KEY}"),
        (f"Cookie: key={KEY}",),
        ("x-api-key: \u00ff\u00fe",),
    ],
)
@pytest.mark.parametrize(
    "request_bytes", [post("/v1/chat/completions", chat()), get("/v1/models"), get("/v1/models/m")]
)
async def test_without_a_valid_key_nothing_is_told(
    request_bytes: bytes, headers: tuple[str, ...], tmp_path: Path
) -> None:
    lines = "".join(f"{header}\r\n" for header in headers).encode()
    head, _, body = request_bytes.partition(b"\r\n\r\n")
    async with served(ROUTES + AUTH, tmp_path) as gateway:
        answered = await ask(gateway.port, head + b"\r\n" + lines + b"\r\n" + body, head[:4].decode().strip())
    assert code(answered) == (401, "invalid_api_key")
    assert KEY not in answered.body.decode()
    assert [record.key for record in gateway.records] == [None]


@pytest.mark.usefixtures("secret")
async def test_another_model_is_forbidden_and_only_the_own_ones_are_named(tmp_path: Path) -> None:
    async with served(ROUTES + AUTH, tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/chat/completions", chat("other"), f"x-api-key: {KEY}"))
    assert code(answered) == (403, "model_not_allowed")
    assert json.loads(answered.body)["error"]["message"].endswith("Available models: m, m-2.")


async def test_anthropics_clients_get_their_own_listing(tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway:
        answered = await ask(gateway.port, get("/v1/models", "anthropic-version: 2023-06-01"), "GET")
        one = await ask(gateway.port, get("/v1/models/m", "anthropic-version: 2023-06-01"), "GET")
    listing = json.loads(answered.body)
    assert (listing["first_id"], listing["last_id"], listing["has_more"]) == ("m", "other", False)
    assert json.loads(one.body) == listing["data"][0]
    assert listing["data"][0]["type"] == "model"


@pytest.mark.parametrize(
    ("host", "served_"),
    [
        ("127.0.0.1:1", True),
        ("localhost", True),
        ("[::1]:8080", True),
        ("app.localhost", True),
        ("gateway.example:8080", True),
        ("evil.test", False),
        ("127.0.0.1.evil.test", False),
        ("localhost.evil.test:80", False),
        ("127.0.0.1@evil.test", False),
        ("", False),
    ],
)
async def test_a_loopback_gateway_is_asked_for_by_its_names_only(host: str, served_: bool, tmp_path: Path) -> None:
    routes = ROUTES.replace("port: 0", "port: 0, allowed_hosts: [gateway.example]")
    async with served(routes, tmp_path) as gateway:
        for path in ("/v1/models", "/", "/healthz"):
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            answered = await ask(gateway.port, request, "GET")
            assert answered.status == (200 if served_ else 403)
            assert served_ or code(answered) == (403, "host_not_allowed")


ORIGINS = {"http://localhost:5173": True, "http://127.0.0.1": True, "https://evil.test": False, "null": False}


@pytest.mark.parametrize("origin", ORIGINS)
async def test_a_page_without_keys_must_be_a_listed_one(origin: str, tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/chat/completions", chat(stream=False), f"Origin: {origin}"))
        listing = await ask(gateway.port, get("/v1/models", f"Origin: {origin}"), "GET")
    if ORIGINS[origin]:
        assert (answered.status, listing.status) == (200, 200)
        assert answered.headers["access-control-allow-origin"] == origin
    else:
        assert code(answered) == code(listing) == (403, "origin_not_allowed")
        assert not [name for name in answered.headers if name.startswith("access-control")]


@pytest.mark.usefixtures("secret")
async def test_a_page_with_a_valid_key_is_answered_and_reads_it_only_if_listed(tmp_path: Path) -> None:
    async with served(ROUTES + AUTH, tmp_path) as gateway:
        for origin, headers in ((LISTED, True), ("https://evil.test", False)):
            request = post("/v1/chat/completions", chat(stream=False), f"Origin: {origin}", f"x-api-key: {KEY}")
            answered = await ask(gateway.port, request)
            assert answered.status == 200
            assert answered.headers.get("access-control-allow-origin") == (origin if headers else None)
            without_key = await ask(gateway.port, post("/v1/chat/completions", chat(), f"Origin: {origin}"))
            assert code(without_key) == (401, "invalid_api_key")
            assert without_key.headers.get("access-control-allow-origin") == (origin if headers else None)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(("origin", "status"), [(LISTED, 200), ("https://evil.test", 403)])
async def test_a_preflight_needs_no_key_but_a_listed_page(origin: str, status: int, tmp_path: Path) -> None:
    asked = (f"Origin: {origin}", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-api-key")
    async with served(ROUTES + AUTH, tmp_path) as gateway:
        answered = await ask(gateway.port, get("/v1/chat/completions", *asked, method="OPTIONS"), "OPTIONS")
    assert answered.status == status
    assert ("access-control-allow-origin" in answered.headers) == (status == 200)
    assert status == 200 or code(answered) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("server", "sent", "for_", "proto", "host"),
    [
        ("port: 0", (), "127.0.0.1", "http", "127.0.0.1"),
        ("port: 0", ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https"), "127.0.0.1", "http", "127.0.0.1"),
        ("port: 0", ("Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6"), "127.0.0.1", "http", "127.0.0.1"),
        (
            "port: 0\ntrusted_proxies: [127.0.0.0/8]",
            ("X-Forwarded-For: 9.9.9.9, 8.8.8.8", "X-Forwarded-Proto: https", "X-Forwarded-Host: app.example"),
            *("9.9.9.9, 8.8.8.8, 127.0.0.1", "https", "app.example"),
        ),
        (
            "port: 0\ntrusted_proxies: [10.0.0.0/8, '::1']",
            ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil"),
            *("127.0.0.1", "http", "127.0.0.1"),
        ),
    ],
    ids=["nothing said", "hearsay", "other hearsay", "a trusted proxy", "another proxy is trusted"],
)
async def test_the_upstream_is_told_where_a_request_came_from(
    server: str, sent: tuple[str, ...], for_: str, proto: str, host: str, tmp_path: Path
) -> None:
    async with (
        scripted_upstream(answering(answer(200, b"{}"))) as upstream,
        served(one_route(upstream.url, server=server), tmp_path) as gateway,
    ):
        assert (await ask(gateway.port, post("/v1/embeddings", {"model": "m"}, *sent))).status == 200
        [request] = upstream.requests
    assert request.headers("x-forwarded-for") == [for_]
    assert request.headers("x-forwarded-proto") == [proto]
    assert request.headers("x-forwarded-host") == [host]
    assert request.headers("forwarded") == request.headers("x-real-ip") == []


async def test_each_request_of_a_connection_is_let_in_for_what_it_says_itself(tmp_path: Path) -> None:
    """The gate remembers a connection's last head: another key, none, or a foreign page must not pass as the last."""
    (tmp_path / "secret").write_text("sk-from-file\n")
    said: list[tuple[tuple[str, ...], int, str | None]] = [
        ((f"x-api-key: {KEY}",), 200, "plain"),
        ((f"x-api-key: {KEY}",), 200, "plain"),
        (("x-api-key: wrong",), 401, None),
        ((f"x-api-key: {OTHER}",), 200, "hashed"),
        ((), 401, None),
        ((f"Authorization: Bearer {KEY}", f"x-api-key: {OTHER}"), 200, "plain"),
        (("Authorization: Bearer wrong", f"x-api-key: {OTHER}"), 401, None),
    ]
    async with served(ROUTES + AUTH, tmp_path) as gateway, raw_client(gateway.port) as client:
        for headers, status, _ in said:
            await client.send(post("/v1/chat/completions", chat(stream=False), *headers))
            assert (await client.answer()).status == status
    assert [record.key for record in gateway.records] == [key for *_, key in said]


async def test_a_foreign_page_is_not_let_in_behind_a_listed_one(tmp_path: Path) -> None:
    cors = f"cors: {{origins: ['{LISTED}']}}\n"
    async with served(ROUTES + cors, tmp_path) as gateway, raw_client(gateway.port) as client:
        for origin, status in ((LISTED, 200), ("https://evil.test", 403), (LISTED, 200)):
            await client.send(post("/v1/chat/completions", chat(stream=False), f"Origin: {origin}"))
            answered = await client.answer()
            assert answered.status == status
            assert ("access-control-allow-origin" in answered.headers) == (status == 200)


async def test_the_upstream_gets_each_requests_own_headers_though_the_connection_is_the_same(tmp_path: Path) -> None:
    sent = [("X-Turn: 1", "hi"), ("X-Turn: 1", "a longer text"), ("X-Turn: 2", "hi"), ("X-Other: 1", "hi")]
    async with (
        scripted_upstream(answering(answer(200, b"{}"))) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        for header, text in sent:
            await client.send(post("/v1/embeddings", {"model": "m", "input": text}, header))
            assert (await client.answer()).status == 200
    assert [request.header("x-turn") for request in upstream.requests] == ["1", "1", "2", None]
    assert [request.header("x-other") for request in upstream.requests] == [None, None, None, "1"]
    for request, (_, text) in zip(upstream.requests, sent, strict=True):
        assert json.loads(request.body)["input"] == text
        assert request.headers("content-length") == [str(len(request.body))]
