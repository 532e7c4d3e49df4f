"""Who may read the metrics, on which port, and how they are told so if not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.access.keys import KeyEntry, Keyring
from proxy.access.origins import OriginPolicy
from proxy.downstream.admin import AdminGate
from proxy.errors import Forbidden, Unauthorized
from proxy.telemetry.record import EndState
from tests.support.prometheus import read, scrape
from tests.support.raw_client import RawAnswer, ask, get
from tests.support.served import served

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.downstream.server import ClientRunner
    from tests.support.served import Served

ROUTES = "routes: {m: demo://}\n"
LOOPBACK = "server: {port: 0}\n" + ROUTES
EVERYWHERE = "server: {port: 0, host: 0.0.0.0}\nauth: {keys: [{name: web, key: sk-web}]}\n" + ROUTES
KEY = "admin: {key: sk-admin}\n"


def admin_port(gateway: Served) -> int:
    runners: list[ClientRunner] = gateway.gateway._runners
    port: int = runners[1].addresses[0][1]
    return port


async def asked(port: int, *headers: str, method: str = "GET") -> RawAnswer:
    return await ask(port, get("/metrics", *headers, method=method), method)


def refusal(answer: RawAnswer) -> tuple[int, str]:
    assert answer.headers["x-penstock-source"] == "gateway"
    return answer.status, json.loads(answer.body)["error"]["code"]


# ---- a loopback port ----


@pytest.mark.parametrize("key", ["", KEY])
async def test_a_loopback_port_asks_for_no_key(key: str, tmp_path: Path) -> None:
    async with served(LOOPBACK + key, tmp_path) as gateway:
        answer = await asked(gateway.port)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert read(answer.body.decode()).get("penstock_replica_up", route="m", replica="0") == 1


async def test_head_says_the_same_without_a_body(tmp_path: Path) -> None:
    async with served(LOOPBACK, tmp_path) as gateway:
        answer = await asked(gateway.port, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(answer.headers["content-length"]) > 1000


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_metrics_are_only_read(method: str, tmp_path: Path) -> None:
    async with served(LOOPBACK, tmp_path) as gateway:
        answer = await asked(gateway.port, "Content-Length: 0", method=method)
    assert refusal(answer) == (405, "method_not_allowed")


async def test_a_foreign_page_reads_nothing_of_a_loopback_port(tmp_path: Path) -> None:
    for admin in ("", "admin: {listen: '127.0.0.1:0'}\n"):
        async with served(LOOPBACK + admin, tmp_path) as gateway:
            port = admin_port(gateway) if admin else gateway.port
            page = await asked(port, "Origin: https://evil.example")
            assert refusal(page) == (403, "origin_not_allowed")
            rebound = await ask(port, get("/metrics").replace(b"127.0.0.1", b"evil.example"), "GET")
            assert refusal(rebound) == (403, "host_not_allowed")


async def test_being_asked_is_no_request_and_leaves_no_line(tmp_path: Path) -> None:
    async with served(LOOPBACK, tmp_path) as gateway:
        for _ in range(3):
            page = await scrape(gateway.port)
    assert page.total("penstock_requests_total") == 0
    assert gateway.records == []


# ---- any other port ----


@pytest.mark.parametrize("header", ["Authorization: Bearer sk-admin", "authorization: bearer  sk-admin"])
async def test_elsewhere_the_admin_key_opens(header: str, tmp_path: Path) -> None:
    async with served(EVERYWHERE + KEY, tmp_path) as gateway:
        page = await scrape(gateway.port, header)
    assert page.get("penstock_workers_reporting") == 1


@pytest.mark.parametrize("headers", [[], ["Authorization: Bearer sk-web"], ["Authorization: Bearer sk-admi"]])
async def test_elsewhere_nothing_else_does(headers: list[str], tmp_path: Path) -> None:
    async with served(EVERYWHERE + KEY, tmp_path) as gateway:
        answer = await asked(gateway.port, *headers)
        record = await gateway.record()
    assert refusal(answer) == (401, "invalid_api_key")
    assert b"penstock_" not in answer.body
    assert b"admin key" in answer.body
    assert (record.path, record.end_state) == ("/metrics", EndState.REJECTED)


@pytest.mark.parametrize("headers", [[], ["Authorization: Bearer sk-web"], ["Authorization: Bearer "]])
async def test_elsewhere_without_an_admin_key_nobody_may(headers: list[str], tmp_path: Path) -> None:
    async with served(EVERYWHERE, tmp_path) as gateway:
        answer = await asked(gateway.port, *headers)
    assert refusal(answer) == (401, "invalid_api_key")
    assert b"admin.key" in answer.body


async def test_the_admin_key_is_no_clients_key(tmp_path: Path) -> None:
    async with served(EVERYWHERE + KEY, tmp_path) as gateway:
        answer = await ask(gateway.port, get("/v1/models", "Authorization: Bearer sk-admin"), "GET")
    assert refusal(answer) == (401, "invalid_api_key")


# ---- a port of its own ----


async def test_admin_listen_moves_the_metrics_off_the_main_port(tmp_path: Path) -> None:
    async with served(LOOPBACK + "admin: {listen: '127.0.0.1:0'}\n", tmp_path) as gateway:
        assert (await asked(gateway.port)).status == 404
        page = await scrape(admin_port(gateway))
    assert page.get("penstock_replica_up", route="m", replica="0") == 1


async def test_what_counts_is_where_the_metrics_stand_not_where_the_api_does(tmp_path: Path) -> None:
    async with served(EVERYWHERE + "admin: {listen: '127.0.0.1:0', key: sk-admin}\n", tmp_path) as gateway:
        assert (await asked(admin_port(gateway))).status == 200
    async with served(LOOPBACK + "admin: {listen: '0.0.0.0:0', key: sk-admin}\n", tmp_path) as gateway:
        assert refusal(await asked(admin_port(gateway))) == (401, "invalid_api_key")
        await scrape(admin_port(gateway), "Authorization: Bearer sk-admin", "Origin: https://evil.example")


async def test_an_admin_port_for_others_knows_any_name(tmp_path: Path) -> None:
    """A scraper asks by address, and nobody gets in without the key."""
    hosts = LOOPBACK.replace("port: 0", "port: 0, allowed_hosts: [api.example.com]")
    async with served(hosts + "admin: {listen: '0.0.0.0:0', key: sk-admin}\n", tmp_path) as gateway:
        named = get("/metrics", "Authorization: Bearer sk-admin").replace(b"127.0.0.1", b"10.1.2.3")
        assert (await ask(admin_port(gateway), named, "GET")).status == 200


async def test_what_is_not_on_the_admin_port_is_said_in_words(tmp_path: Path) -> None:
    async with served(LOOPBACK + "admin: {listen: '127.0.0.1:0'}\n", tmp_path) as gateway:
        answer = await ask(admin_port(gateway), get("/v1/models"), "GET")
    assert refusal(answer) == (404, "not_found")


# ---- the gate by itself ----


def gate(*keys: str, on_loopback: bool) -> AdminGate:
    entries = [KeyEntry.from_key("admin", key) for key in keys]
    return AdminGate(on_loopback, Keyring(entries), OriginPolicy((), loopback_bind=on_loopback))


def visit(**headers: str) -> web.Request:
    return make_mocked_request("GET", "/metrics", headers={"Host": "127.0.0.1", **headers})


def test_on_loopback_a_wrong_key_does_no_harm() -> None:
    gate("k", on_loopback=True).admit(visit(Authorization="Bearer x"))
    with pytest.raises(Forbidden):
        gate("k", on_loopback=True).admit(visit(Origin="null"))


def test_an_empty_keyring_opens_nothing() -> None:
    with pytest.raises(Unauthorized):
        gate(on_loopback=False).admit(visit(Authorization="Bearer k"))
    gate("k", on_loopback=False).admit(visit(Authorization="Bearer k"))
