"""A process that serves by itself: it hears of a new file, and a service manager hears of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.gateway import RunningGateway, running_file, running_gateway
from tests.support.prometheus import scrape
from tests.support.raw_client import ask, chat, get, post
from tests.support.service import manager, service

CHAT = "/v1/chat/completions"
DEMO = "'demo://?tokens=2&interval=1ms&first=1ms'"
ROUTES = f"routes: {{m: {DEMO}}}\n"
MORE = f"routes: {{m: {DEMO}, n: {DEMO}}}\n"


def port(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


async def serves(gateway: RunningGateway, model: str) -> bool:
    return (await ask(port(gateway), post(CHAT, chat(model)))).status == 200


async def until_served(gateway: RunningGateway, model: str) -> None:
    async with asyncio.timeout(20):
        while not await serves(gateway, model):
            await asyncio.sleep(0.05)


async def stopped(gateway: RunningGateway) -> int:
    gateway.process.terminate()
    code = await asyncio.wait_for(gateway.process.wait(), 20)
    for word in ("Traceback", "never retrieved", "Warning", "unclosed"):
        assert word not in gateway.log()
    return code


async def test_sighup_has_the_file_read_again(tmp_path: Path) -> None:
    async with running_gateway(ROUTES, tmp_path) as gateway:
        file = tmp_path / "routes.yaml"
        file.write_text(MORE)
        os.utime(file, ns=(0, 0))
        gateway.process.send_signal(signal.SIGHUP)
        await until_served(gateway, "n")
        assert await stopped(gateway) == 0
        assert "configuration reloaded: routes added: n" in gateway.log()


async def test_a_change_of_the_file_is_taken_up_by_itself(tmp_path: Path) -> None:
    """Written in place, replaced, and exchanged as Kubernetes does; a bad one in between."""
    for name, text in (("one", ROUTES), ("two", MORE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "routes.yaml").write_text(text)
    os.symlink("one", tmp_path / "..data")
    file = tmp_path / "routes.yaml"
    os.symlink("..data/routes.yaml", file)
    async with running_file(file, tmp_path) as gateway:
        os.symlink("two", tmp_path / "..new")
        os.replace(tmp_path / "..new", tmp_path / "..data")
        await until_served(gateway, "n")
        (tmp_path / "routes.new").write_text(MORE.replace("n:", "o:"))
        os.replace(tmp_path / "routes.new", file)
        await until_served(gateway, "o")
        file.write_text("routes: {m: ftp://canary}\n")
        async with asyncio.timeout(20):
            while (await scrape(port(gateway))).get("penstock_config_last_reload_success") != 0:
                await asyncio.sleep(0.05)
        assert await serves(gateway, "o")
        file.write_text(MORE.replace("n:", "p:"))
        await until_served(gateway, "p")
        page = await scrape(port(gateway))
        assert page.get("penstock_config_reloads_total") == 4
        assert page.get("penstock_config_last_reload_success") == 1
        assert await stopped(gateway) == 0
        assert "canary" not in gateway.log()


async def test_flags_count_more_than_a_new_file_too(tmp_path: Path) -> None:
    async with running_gateway(ROUTES, tmp_path, "--host", "127.0.0.1") as gateway:
        (tmp_path / "routes.yaml").write_text("server: {port: 7, host: localhost}\n" + MORE)
        gateway.process.send_signal(signal.SIGHUP)
        await until_served(gateway, "n")
        assert await stopped(gateway) == 0
        assert "next start" not in gateway.log()


async def test_a_manager_hears_of_each_turn(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES)
    with manager(tmp_path) as hearing:
        async with service(file, "--port", "0", NOTIFY_SOCKET=hearing.name, WATCHDOG_USEC="200000") as gateway:
            ready = await hearing.hears(READY="1")
            assert ready["STATUS"] == f"serving on {gateway.url}"
            assert {"WATCHDOG": "1"} in [*hearing.said, await hearing.hears(WATCHDOG="1")]
            file.write_text("routes: {m: ftp://x}\n")
            gateway.process.send_signal(signal.SIGHUP)
            reloading = await hearing.hears(RELOADING="1")
            assert int(reloading["MONOTONIC_USEC"]) > 0
            status = (await hearing.hears(READY="1"))["STATUS"]
            assert status.startswith(
                f"serving on {gateway.url}; the configuration was not taken up: {file}:1: routes.m"
            )
            file.write_text(MORE)
            gateway.process.send_signal(signal.SIGHUP)
            await hearing.hears(RELOADING="1")
            assert (await hearing.hears(READY="1"))["STATUS"] == f"serving on {gateway.url}"
            assert await serves(gateway, "n")
            gateway.process.terminate()
            await hearing.hears(STOPPING="1")
            assert await asyncio.wait_for(gateway.process.wait(), 20) == 0


async def test_passed_sockets_are_served_whatever_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("server: {port: 1}\nadmin: {listen: '127.0.0.1:1'}\n" + ROUTES)
    with socket.create_server(("127.0.0.1", 0)) as main, socket.create_server(("127.0.0.1", 0)) as operators:
        sockets = {"penstock.socket": main, "admin": operators}
        async with service(file, sockets=sockets) as gateway:
            assert gateway.url == f"http://127.0.0.1:{main.getsockname()[1]}"
            assert await serves(gateway, "m")
            assert (await ask(port(gateway), get("/healthz"), "GET")).status == 404
            assert (await ask(operators.getsockname()[1], get("/healthz"), "GET")).status == 200
            assert await stopped(gateway) == 0
        # They stay open for whoever comes next.
        with socket.create_connection(main.getsockname()):
            pass


async def test_a_passed_socket_that_all_can_reach_needs_keys(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES)
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        with pytest.raises(AssertionError, match=r"add auth\.keys"):
            async with service(file, sockets={"s": everywhere}):
                pass
