"""What operators are told of the configuration, and by whom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.config.loader import load
from proxy.operations import described
from proxy.reload import Reload
from tests.support.prometheus import scrape
from tests.support.raw_client import RawAnswer, ask, get
from tests.support.served import Served, served

FULL = Path(__file__).parent / "config" / "full.yaml"
ROUTES = "routes: {m: demo://}\n"
LOOPBACK = "server: {port: 0}\n" + ROUTES
EVERYWHERE = "server: {port: 0, host: 0.0.0.0}\nauth: {keys: [{name: web, key: sk-web}]}\n" + ROUTES


def reloaded(gateway: Served, file: Path, text: str) -> Reload:
    """What came of reading this, with what the running gateway keeps."""
    file.write_text(text)
    reload = Reload(load(file, {}), 1000.0)
    gateway.gateway.take_up(reload)
    return reload


async def configuration(port: int, *headers: str) -> RawAnswer:
    return await ask(port, get("/admin/config", *headers), "GET")


def test_the_configuration_is_shown_as_the_file_says_it_without_a_secret() -> None:
    reload = Reload(load(FULL, {}), 0.0, ("routes.yaml:1: no",), ("server.port",))
    told = json.loads(json.dumps(described(reload)))
    assert (told["read_at"], told["taken_up"]) == ("1970-01-01T00:00:00+00:00", False)
    assert (told["complaints"], told["needs_restart"]) == (["routes.yaml:1: no"], ["server.port"])
    assert told["configuration"]["routes"]["chat"]["replicas"][1]["api_key"] == "***"
    assert told["configuration"]["auth"]["keys"][1]["key_sha256"] == "***"
    text = json.dumps(told)
    assert "secret" not in text.replace("client_secret", "")
    assert "2bb80d53" not in text


def test_what_a_tools_program_is_told_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("routes: {m: demo://}\ntools: {t: {mcp: {command: [prog, --key, canary], env: {K: canary}}}}\n")
    told = described(Reload(load(file, {}), 0.0))
    assert "canary" not in json.dumps(told)
    assert '"prog"' in json.dumps(told)


async def test_it_is_asked_for_on_a_loopback_port(tmp_path: Path) -> None:
    async with served(LOOPBACK, tmp_path) as gateway:
        answer = await configuration(gateway.port)
        page = await configuration(gateway.port, "Origin: https://evil.example")
        assert [record.path for record in gateway.records] == ["/admin/config"]  # only what was refused is told
    told = json.loads(answer.body)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert (told["taken_up"], told["complaints"], told["needs_restart"]) == (True, [], [])
    assert list(told["configuration"]["routes"]) == ["m"]
    assert page.status == 403


@pytest.mark.parametrize(("key", "status"), [("sk-admin", 200), ("sk-web", 401)])
async def test_elsewhere_with_the_admin_key_alone(key: str, status: int, tmp_path: Path) -> None:
    async with served(EVERYWHERE + "admin: {key: sk-admin}\n", tmp_path) as gateway:
        assert (await configuration(gateway.port, f"Authorization: Bearer {key}")).status == status
        assert (await configuration(gateway.port)).status == 401


async def test_a_reload_changes_the_admin_key_and_what_is_told(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    async with served(EVERYWHERE + "admin: {key: old}\n", tmp_path) as gateway:
        reload = reloaded(gateway, file, EVERYWHERE.replace("m:", "n:") + "admin: {key: new}\n")
        assert (await configuration(gateway.port, "Authorization: Bearer old")).status == 401
        told = json.loads((await configuration(gateway.port, "Authorization: Bearer new")).body)
        assert list(told["configuration"]["routes"]) == ["n"]
        gateway.gateway.take_up(replace(reload, complaints=("no",)))
        told = json.loads((await configuration(gateway.port, "Authorization: Bearer new")).body)
        assert (told["complaints"], told["taken_up"]) == (["no"], False)
        page = await scrape(gateway.port, "Authorization: Bearer new")
        assert page.get("penstock_config_last_reload_success") == 0


async def test_a_reload_changes_which_pages_may_ask_on_the_main_port(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    async with served(LOOPBACK, tmp_path) as gateway:
        page = "Origin: https://ops.example"
        assert (await configuration(gateway.port, page)).status == 403
        reloaded(gateway, file, LOOPBACK + "cors: {origins: ['https://ops.example']}\n")
        assert (await configuration(gateway.port, page)).status == 200
