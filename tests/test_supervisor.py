"""Several processes take up the same file: those that run, those that come later, and none of them something else."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from proxy.supervisor import LONGEST_DELAY_S, delay_s
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.prometheus import scrape
from tests.support.raw_client import ask, chat, get, post
from tests.support.service import manager, service

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")

CHAT = "/v1/chat/completions"
DEMO = "'demo://?tokens=2&interval=1ms&first=1ms'"
ROUTES = f"routes: {{m: {DEMO}}}\n"
MORE = f"routes: {{m: {DEMO}, n: {DEMO}}}\n"
BAD = "routes: {m: ftp://x}\n"
ASKED = 24
"""So many connections reach both of two workers; but for one time in eight million."""


def port(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def workers(gateway: RunningGateway) -> set[int]:
    pid = gateway.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def statuses(gateway: RunningGateway, model: str) -> set[int]:
    """What the workers answer, all of them."""
    return {(await ask(port(gateway), post(CHAT, chat(model)))).status for _ in range(ASKED)}


async def reload(gateway: RunningGateway, file: Path, text: str, number: int) -> None:
    """Wait until it is the `number`th that was read."""
    file.write_text(text)
    gateway.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while (await scrape(port(gateway))).get("penstock_config_reloads_total") != number:
            await asyncio.sleep(0.02)


async def until_replaced(gateway: RunningGateway, before: set[int]) -> None:
    async with asyncio.timeout(20):
        while len(workers(gateway) - before) != 1:
            await asyncio.sleep(0.02)
        while (await scrape(port(gateway))).get("penstock_workers_reporting") != 2:
            await asyncio.sleep(0.02)


async def test_all_workers_take_up_the_same_file_and_later_ones_too(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    async with running_gateway(ROUTES, tmp_path, "--workers", "2") as gateway:
        assert await statuses(gateway, "n") == {404}
        await reload(gateway, file, MORE, 1)
        assert await statuses(gateway, "n") == {200}
        await reload(gateway, file, BAD, 2)
        before = workers(gateway)
        os.kill(min(before), signal.SIGKILL)
        await until_replaced(gateway, before)
        assert await statuses(gateway, "n") == {200}
        page = await scrape(port(gateway))
        assert page.get("penstock_config_last_reload_success") == 0  # the new one knows, too, and says why
        told = {(await ask(port(gateway), get("/admin/config"), "GET")).body for _ in range(ASKED)}
        [answer] = told
        assert b"routes.m: must start with" in answer
        await reload(gateway, file, MORE, 3)
        assert (await scrape(port(gateway))).get("penstock_config_last_reload_success") == 1
        log = gateway.log()
    assert log.count("configuration reloaded") == 2  # once, however many workers there are
    assert log.count("the last good one stays") == 1


async def test_a_change_of_the_file_is_noticed_by_itself(tmp_path: Path) -> None:
    async with running_gateway(ROUTES, tmp_path, "--workers", "2") as gateway:
        (tmp_path / "routes.yaml").write_text(MORE)
        async with asyncio.timeout(20):
            while (await ask(port(gateway), post(CHAT, chat("n")))).status != 200:
                await asyncio.sleep(0.05)
        assert await statuses(gateway, "n") == {200}


async def test_a_worker_that_hears_nothing_is_replaced_rather_than_left_behind(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    async with running_gateway(ROUTES, tmp_path, "--workers", "2") as gateway:
        before = workers(gateway)
        deaf = min(before)
        os.kill(deaf, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while f"worker {deaf} hears nothing any more" not in gateway.log():
                gateway.process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.002)
        file.write_text(MORE)
        gateway.process.send_signal(signal.SIGHUP)
        await until_replaced(gateway, before)
        assert f"worker {deaf} was ended by SIGKILL" in gateway.log()
        async with asyncio.timeout(20):
            while await statuses(gateway, "n") != {200}:
                await asyncio.sleep(0.05)


async def test_a_manager_hears_of_all_workers_as_of_one(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES)
    with manager(tmp_path) as hearing, socket.create_server(("127.0.0.1", 0), backlog=100) as passed:
        told = {"NOTIFY_SOCKET": hearing.name, "WATCHDOG_USEC": "200000"}
        async with service(file, "--workers", "2", sockets={"s": passed}, **told) as gateway:
            assert (await hearing.hears(READY="1"))["STATUS"] == f"serving on {gateway.url}"
            assert port(gateway) == passed.getsockname()[1]
            await hearing.hears(WATCHDOG="1")
            file.write_text(MORE)
            gateway.process.send_signal(signal.SIGHUP)
            await hearing.hears(RELOADING="1")
            await hearing.hears(READY="1")
            assert await statuses(gateway, "n") == {200}
            gateway.process.terminate()
            await hearing.hears(STOPPING="1")
            assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
    assert sum("READY" in message for message in hearing.said) == 2


def test_each_quick_death_doubles_the_wait_up_to_its_limit() -> None:
    assert [delay_s(deaths) for deaths in (0, 1, 2, 3)] == [0.0, 0.1, 0.2, 0.4]
    assert delay_s(8) == delay_s(10_000) == LONGEST_DELAY_S
