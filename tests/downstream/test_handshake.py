"""The WebSocket handshake: what is selected, what is a credential, and that the latter is never seen again."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy.downstream.handshake import lasting_headers
from tests.support.raw_client import RawClient, get, raw_client
from tests.support.served import served

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-canary-0ff3r"
ENCODED = base64.urlsafe_b64encode(KEY.encode()).rstrip(b"=").decode()
PLAIN = f"openai-insecure-api-key.{KEY}"
BEARER = f"bearer.b64url.{ENCODED}"
OPEN = "server: {port: 0}\nroutes: {m: demo://}\n"
KEYED = OPEN + f"auth: {{keys: [{{name: web, key: {KEY}}}]}}\n"
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


async def head(client: RawClient, *headers: str, path: str = "/v1/ws") -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, and all of it as text."""
    await client.send(get(path, *UPGRADE, *headers))
    text = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    lines = [line.partition(":") for line in text.split("\r\n")[1:] if line]
    return int(text.split()[1]), {name.lower(): value.strip() for name, _, value in lines}, text


def offer(*entries: str) -> str:
    return "Sec-WebSocket-Protocol: " + ", ".join(entries)


SELECTED: dict[str, tuple[tuple[str, ...], str | None]] = {
    "nothing offered": ((f"Authorization: Bearer {KEY}",), None),
    "a key alone": ((offer(PLAIN),), None),
    "an encoded key alone": ((offer(BEARER),), None),
    "realtime and a key": ((offer("realtime", PLAIN, "openai-beta.realtime-v1"),), "realtime"),
    "a key first": ((offer(BEARER, "chat"),), "chat"),
    "a key in a header of its own": ((offer("chat"), offer(PLAIN)), "chat"),
    "two keys, the first counts": ((offer(PLAIN, "openai-insecure-api-key.wrong", "chat"),), "chat"),
    "a header beside a wrong one": ((f"x-api-key: {KEY}", offer("openai-insecure-api-key.wrong", "chat")), "chat"),
    "empty entries": ((offer("", PLAIN, " ", "chat", ""),), "chat"),
}


@pytest.mark.parametrize("case", SELECTED)
async def test_the_first_entry_that_is_no_credential_is_selected(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    headers, selected = SELECTED[case]
    async with served(KEYED, tmp_path) as gateway, raw_client(gateway.port) as client:
        status, got, text = await head(client, *headers)
        client.leave()
        record = await gateway.record()
    assert status == 101
    assert got.get("sec-websocket-protocol") == selected
    assert "sec-websocket-extensions" not in got
    assert got["x-request-id"] == record.request_id
    assert (record.key, record.transport, record.dialect) == ("web", "ws", "bare")
    for secret in (KEY, ENCODED):
        assert secret not in text + quiet_log.text + repr(gateway.records)


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no key": ((), 401, "invalid_api_key"),
    "a wrong key": ((offer("openai-insecure-api-key.canary", "chat"),), 401, "invalid_api_key"),
    "an empty key": ((offer("openai-insecure-api-key.", "chat"),), 401, "invalid_api_key"),
    "a key that is not base64url": ((offer("bearer.b64url.canary!"),), 400, "invalid_request"),
    "a key of other bytes": ((offer("bearer.b64url._w"),), 400, "invalid_request"),
    "an entry that is no token": ((offer("can ary", PLAIN),), 400, "invalid_request"),
    "a wrong key for mux": ((offer("llm-mux.v1", "openai-insecure-api-key.canary"),), 401, "invalid_api_key"),
    "a ticket that is none": ((offer("chat"),), 401, "invalid_api_key"),
    "a page of elsewhere": ((f"x-api-key: {KEY}", "Origin: https://evil.test"), 403, "origin_not_allowed"),
    "a page of nowhere": ((f"x-api-key: {KEY}", "Origin: null"), 403, "origin_not_allowed"),
}


async def test_a_dialect_goes_before_any_other_entry(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway, raw_client(gateway.port) as client:
        status, got, text = await head(client, offer("chat", PLAIN, "llm-mux.v1"))
        client.leave()
        record = await gateway.record()
    assert (status, got["sec-websocket-protocol"]) == (101, "llm-mux.v1")
    assert (record.key, record.transport, record.dialect) == ("web", "ws", "mux")
    assert KEY not in text


@pytest.mark.parametrize("case", REFUSED)
async def test_a_handshake_that_fails_does_so_in_http_and_repeats_nothing(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    headers, status, code = REFUSED[case]
    async with served(KEYED, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(get("/v1/ws?ticket=canary" if "ticket" in case else "/v1/ws", *UPGRADE, *headers))
        answered = await client.answer("GET")
        record = await gateway.record()
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (status, code)
    assert (answered.headers.get("connection") == "close") == (status in (400, 426))
    for secret in (KEY, ENCODED, "canary"):
        assert secret not in str(answered) + quiet_log.text + repr(gateway.records)
    assert (record.status, record.end_state) == (status, "rejected")


@pytest.mark.parametrize(
    "broken",
    [
        (*UPGRADE[:3], "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="[:-6]),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: canary"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 99", UPGRADE[3]),
        ("Upgrade: websocket", "Sec-WebSocket-Version: 13", UPGRADE[3]),
    ],
    ids=["a short key", "no key", "a bad key", "a bad version", "no connection upgrade"],
)
async def test_a_handshake_that_is_none_is_a_400_that_repeats_nothing(broken: tuple[str, ...], tmp_path: Path) -> None:
    async with served(OPEN, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(get("/v1/ws", *broken))
        answered = await client.answer("GET")
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (400, "invalid_request")
    assert "canary" not in str(answered)


async def test_an_upgrade_of_http_1_0_is_none(tmp_path: Path) -> None:
    async with served(OPEN, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(get("/v1/ws", *UPGRADE).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await client.answer("GET")).status == 400


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:9", "http://[::1]:3000"])
async def test_pages_of_this_machine_may_connect_to_a_loopback_gateway(origin: str, tmp_path: Path) -> None:
    async with served(OPEN, tmp_path) as gateway, raw_client(gateway.port) as client:
        assert (await head(client, f"Origin: {origin}"))[0] == 101


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://localhost.evil.test", "file://"])
async def test_pages_of_elsewhere_may_not(origin: str, tmp_path: Path) -> None:
    async with served(OPEN, tmp_path) as gateway, raw_client(gateway.port) as client:
        status, headers, _ = await head(client, f"Origin: {origin}")
    assert status == 403
    assert headers["x-penstock-source"] == "gateway"


async def test_a_rebound_name_may_not_connect(tmp_path: Path) -> None:
    request = get("/v1/ws", *UPGRADE, "Origin: http://evil.test").replace(b"Host: 127.0.0.1", b"Host: evil.test")
    async with served(OPEN, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(request)
        answered = await client.answer("GET")
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (403, "host_not_allowed")


def test_the_handshake_is_forgotten_and_a_key_in_it_too() -> None:
    """What a session remembers of its upgrade is what its requests may say of their client."""
    sent = (*UPGRADE, offer(PLAIN), "Host: here", "X-Team: a", "Host-Rack: b")
    headers = CIMultiDict((name, value) for name, _, value in (line.partition(": ") for line in sent))
    request = make_mocked_request("GET", "/v1/ws", headers=headers)
    assert lasting_headers(request) == [("Connection", "Upgrade"), ("X-Team", "a"), ("Host-Rack", "b")]
