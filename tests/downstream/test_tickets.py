"""Tickets over HTTP, and at the upgrade."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.access import tickets
from tests.support.mux import mux
from tests.support.raw_client import ask, chat, get, post
from tests.support.served import Served, served

if TYPE_CHECKING:
    from pathlib import Path

OPEN = "server: {port: 0}\nroutes: {m: 'demo://?tokens=1&interval=1ms&first=1ms'}\n"
KEYED = OPEN + 'auth: {keys: [{name: web, key: sk-w3b}]}\ncors: {origins: ["https://app.test", "https://two.test"]}\n'
PAGE = "Origin: https://app.test"


async def ticket(gateway: Served, *headers: str) -> str:
    answered = await ask(gateway.port, post("/v1/ws/tickets", b"", "Authorization: Bearer sk-w3b", *headers))
    assert answered.status == 201
    told = json.loads(answered.body)
    assert told["expires_in"] == 30
    assert answered.headers["cache-control"] == "no-store"
    issued: str = told["ticket"]
    return issued


async def status_of(gateway: Served, path: str, origin: str | None = "https://app.test") -> int:
    """What an upgrade is answered."""
    try:
        async with websockets.connect(gateway.ws_url + path, origin=websockets.Origin(origin) if origin else None):
            return 101
    except websockets.InvalidStatus as refused:
        return refused.response.status_code


@pytest.mark.parametrize("dialect", ["bare", "mux"])
async def test_a_ticket_opens_one_socket_in_its_keys_name(dialect: str, tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        issued = await ticket(gateway, PAGE)
        if dialect == "mux":
            async with mux(gateway, f"/v1/ws?ticket={issued}", origin="https://app.test") as client:
                await client.start()
                assert (await client.until("done"))[0]["type"] == "ready"
        else:
            async with websockets.connect(
                f"{gateway.ws_url}/v1/ws?ticket={issued}", origin=websockets.Origin("https://app.test")
            ) as socket:
                await socket.send(json.dumps(chat()))
                assert "delta" in str(await socket.recv())
        await gateway.record(2)
        assert {record.key for record in gateway.records} == {"web"}
        assert issued not in repr(gateway.records)
        assert await status_of(gateway, f"/v1/ws?ticket={issued}") == 401


async def test_a_ticket_is_for_the_page_that_asked(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        assert await status_of(gateway, f"/v1/ws?ticket={await ticket(gateway, PAGE)}", "https://two.test") == 401
        assert await status_of(gateway, f"/v1/ws?ticket={await ticket(gateway, PAGE)}", None) == 401
        assert await status_of(gateway, f"/v1/ws?ticket={await ticket(gateway)}") == 401
        assert await status_of(gateway, f"/v1/ws?ticket={await ticket(gateway)}", None) == 101


async def test_a_ticket_does_not_open_for_a_page_that_is_not_listed(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        issued = await ticket(gateway, "Origin: https://evil.test")
        assert await status_of(gateway, f"/v1/ws?ticket={issued}", "https://evil.test") == 403


async def test_a_late_ticket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "LIFETIME_S", 0.02)
    async with served(KEYED, tmp_path) as gateway:
        issued = await ticket(gateway, PAGE)
        await asyncio.sleep(0.04)
        assert await status_of(gateway, f"/v1/ws?ticket={issued}") == 401


async def test_a_header_goes_before_a_ticket(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        path = f"/v1/ws?ticket={await ticket(gateway)}"
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(gateway.ws_url + path, additional_headers={"x-api-key": "wrong"})
        assert await status_of(gateway, path, None) == 101


@pytest.mark.parametrize("headers", [(), ("Authorization: Bearer wrong",)])
async def test_tickets_are_for_holders_of_keys(headers: tuple[str, ...], tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/ws/tickets", b"", *headers))
    assert (answered.status, json.loads(answered.body)["error"]["code"]) == (401, "invalid_api_key")


async def test_where_nobody_is_asked_for_a_key_there_are_tickets_too(tmp_path: Path) -> None:
    async with served(OPEN, tmp_path) as gateway:
        issued = await ticket(gateway)
        assert await status_of(gateway, f"/v1/ws?ticket={issued}", None) == 101
        assert await status_of(gateway, "/v1/ws?ticket=none", None) == 101


async def test_a_get_is_refused(tmp_path: Path) -> None:
    async with served(OPEN, tmp_path) as gateway:
        assert (await ask(gateway.port, get("/v1/ws/tickets"), "GET")).status == 405


async def test_a_page_may_ask_with_its_key(tmp_path: Path) -> None:
    async with served(KEYED, tmp_path) as gateway:
        answered = await ask(gateway.port, post("/v1/ws/tickets", b"", "Authorization: Bearer sk-w3b", PAGE))
    assert answered.headers["access-control-allow-origin"] == "https://app.test"
