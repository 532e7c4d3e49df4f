"""Several processes on one port: the real command, its processes counted, killed and signalled from outside."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.config.loader import load
from proxy.config.model import Config
from proxy.downstream.server import LAST_WORDS_S
from proxy.lines import parcel
from proxy.overseer import CANNOT_GO_ON, StopOrders
from proxy.reload import Reload
from proxy.worker_metrics import FiguresLine
from proxy.workers import _Line
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.raw_client import RawClient, ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.tls import certificate
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks at processes through /proc")

DEMO = "routes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"
END = chunk(STOP + DONE) + LAST_CHUNK


class Held:
    """An upstream that says one thing and goes on when it may."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("one")))
        await self.go_on.wait()
        await peer.send(END)


def port_of(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def workers(gateway: RunningGateway) -> set[int]:
    pid = gateway.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def sockets(pid: int, port: int, state: str) -> int:
    """How many IPv4 sockets on this local port a process holds, none if it has gone; `state` as /proc writes it: 0A
    listens, 01 is open."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {line[9] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == state}
    try:
        held = [os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(name.startswith("socket:[") and name[8:-1] in inodes for name in held)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def refused(number: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", number)
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was in the queue when that closed
        return True
    writer.close()
    return False


async def until_refused(number: int) -> None:
    async with asyncio.timeout(5):
        while not await refused(number):
            await asyncio.sleep(0.01)


async def exit_code(gateway: RunningGateway) -> int:
    code = await asyncio.wait_for(gateway.process.wait(), 5)
    for word in ("Traceback", "never retrieved", "Warning", "unclosed"):
        assert word not in gateway.log()
    return code


async def clients(stack: AsyncExitStack, port: int, count: int) -> list[RawClient]:
    return [await stack.enter_async_context(raw_client(port)) for _ in range(count)]


async def open_streams(stack: AsyncExitStack, port: int, count: int) -> list[RawClient]:
    streams = await clients(stack, port, count)
    for client in streams:
        await client.send(post("/v1/chat/completions", chat()))
        await client.reader.readuntil(content("one"))
    return streams


async def is_served(client: RawClient) -> bool:
    try:
        await client.send(get("/v1/models"))
        return (await client.answer("GET")).status == 200
    except ConnectionError:
        return False


async def test_connections_are_dealt_to_all_workers(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "3") as gateway, AsyncExitStack() as stack:
        port = port_of(gateway)
        connected = await clients(stack, port, 64)
        assert all([await is_served(client) for client in connected])
        shares = [sockets(pid, port, "01") for pid in workers(gateway)]
        assert len(shares) == 3
        assert min(shares) > 0
        assert sum(shares) == 64
        assert sockets(gateway.process.pid, port, "0A") == 0  # the supervisor keeps the port but takes nobody
        gateway.process.terminate()
        assert await exit_code(gateway) == 0


async def test_a_start_is_said_once_whatever_the_number_of_workers(tmp_path: Path) -> None:
    routes = "server: {workers: 3}\ndiscover: true\n" + DEMO
    async with running_gateway(routes, tmp_path) as gateway:
        gateway.process.terminate()
        assert await exit_code(gateway) == 0
        assert gateway.process.stdout is not None
        assert await gateway.process.stdout.read() == b""
        pending, count = gateway.log().splitlines()
    assert pending.endswith("discover is accepted but does nothing yet")
    assert count.endswith("3 workers")


async def test_a_killed_worker_takes_only_its_own_connections_along_and_is_replaced(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "3") as gateway, AsyncExitStack() as stack:
        port, before = port_of(gateway), workers(gateway)
        connected = await clients(stack, port, 32)
        assert all([await is_served(client) for client in connected])
        killed = min(before)
        its_own = sockets(killed, port, "01")
        os.kill(killed, signal.SIGKILL)
        await until(lambda: f"worker {killed} was ended by SIGKILL" in gateway.log())
        assert (await ask(port, post("/v1/chat/completions", chat()))).whole
        assert [await is_served(client) for client in connected].count(False) == its_own
        await until(lambda: len(workers(gateway)) == 3 and all(sockets(pid, port, "0A") for pid in workers(gateway)))
        assert workers(gateway) > before - {killed}
        newcomers = await clients(stack, port, 64)
        assert all([await is_served(client) for client in newcomers])
        [new] = workers(gateway) - before
        assert sockets(new, port, "01") > 0
        gateway.process.terminate()
        assert await exit_code(gateway) == 0


async def test_a_worker_that_dies_again_and_again_is_replaced_less_and_less_soon(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "2") as gateway:
        before = workers(gateway)
        os.kill(min(before), signal.SIGKILL)
        await until(lambda: len(workers(gateway) - before) == 1)
        [second] = workers(gateway) - before
        os.kill(second, signal.SIGKILL)
        await until(lambda: len(workers(gateway) - before - {second}) == 1)
        gateway.process.terminate()
        assert await exit_code(gateway) == 0
        waits = [line.rpartition(" starts ")[2] for line in gateway.log().splitlines() if " starts " in line]
    assert waits in (["in 0.1 s", "in 0.2 s"], ["now", "in 0.1 s"])  # on a slow machine the first was not quick


async def test_a_replacement_that_cannot_start_is_tried_again_while_the_others_serve(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    tls = f"server: {{tls: {{certificate: {own.name}, key: {key.name}}}}}\n"
    async with running_gateway(tls + DEMO, tmp_path, "--workers", "2") as gateway:
        before, whole = workers(gateway), key.read_text()
        key.write_text("no PEM file")
        os.kill(min(before), signal.SIGKILL)
        await until(lambda: "server.tls" in gateway.log())
        assert max(before) in workers(gateway)
        key.write_text(whole)
        await until(lambda: all(sockets(pid, port_of(gateway), "0A") for pid in workers(gateway) | {max(before)}))
        gateway.process.terminate()
        assert await exit_code(gateway) == 0
        assert "ended with exit code 1" in gateway.log()


async def test_sigterm_drains_every_worker_and_leaves_the_port_to_others(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url), tmp_path, "--workers", "2") as gateway,
        AsyncExitStack() as stack,
    ):
        streams = await open_streams(stack, port_of(gateway), 32)
        assert all(sockets(pid, port_of(gateway), "01") for pid in workers(gateway))
        gateway.process.terminate()
        await until_refused(port_of(gateway))
        socket.create_server(("127.0.0.1", port_of(gateway))).close()
        assert gateway.process.returncode is None
        held.go_on.set()
        for client in streams:
            assert (await client.rest()).endswith(END)
        assert await exit_code(gateway) == 0


async def test_a_second_signal_stops_all_at_once(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url), tmp_path, "--workers", "2") as gateway,
        AsyncExitStack() as stack,
    ):
        streams = await open_streams(stack, port_of(gateway), 4)
        gateway.process.terminate()
        await until_refused(port_of(gateway))
        gateway.process.terminate()
        assert await exit_code(gateway) == 130
        for client in streams:
            assert not (await client.rest()).endswith(LAST_CHUNK)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
async def test_a_signal_to_all_of_them_counts_once(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """As a terminal's Ctrl-C and a service manager's stop reach them."""
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url), tmp_path, "--workers", "2") as gateway,
        AsyncExitStack() as stack,
    ):
        streams = await open_streams(stack, port_of(gateway), 4)
        for pid in [*workers(gateway), gateway.process.pid]:
            os.kill(pid, number)
        await until_refused(port_of(gateway))
        await asyncio.sleep(2 * LAST_WORDS_S)  # a stream may end well that much after a stop at once
        held.go_on.set()
        for client in streams:
            assert (await client.rest()).endswith(END)
        assert await exit_code(gateway) == code


async def test_sighup_ends_nobody(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "2") as gateway:
        before = workers(gateway)
        for pid in [*before, gateway.process.pid]:
            os.kill(pid, signal.SIGHUP)
        assert (await ask(port_of(gateway), post("/v1/chat/completions", chat()))).whole
        gateway.process.terminate()
        assert await exit_code(gateway) == 0
        assert "worker " not in gateway.log()


async def test_workers_whose_supervisor_was_killed_drain_and_end(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        running_gateway(one_route(upstream.url), tmp_path, "--workers", "2") as gateway,
        AsyncExitStack() as stack,
    ):
        left, port = workers(gateway), port_of(gateway)
        streams = await open_streams(stack, port, 4)
        gateway.process.kill()
        await until_refused(port)
        held.go_on.set()
        for client in streams:
            assert (await client.rest()).endswith(END)
        await until(lambda: not any(alive(pid) for pid in left))
        assert gateway.process.stdout is not None
        assert await gateway.process.stdout.read() == b""


async def refusal(tmp_path: Path, routes_yaml: str, *arguments: str) -> tuple[int | None, str, list[str]]:
    """Exit code, standard output and the lines of standard error of a command that ends by itself."""
    (tmp_path / "refused.yaml").write_text(routes_yaml)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "-c", str(tmp_path / "refused.yaml"), "--workers", "3", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()
    return process.returncode, out.decode(), err.decode().splitlines()


@pytest.mark.parametrize("setting", ["--port", "admin.listen"])
async def test_a_port_that_other_workers_listen_on_is_in_use(setting: str, tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "2") as first:
        number = port_of(first)
        admin = f"admin: {{listen: '127.0.0.1:{number}'}}\n" if setting == "admin.listen" else ""
        own = str(number) if setting == "--port" else "0"
        code, out, [line] = await refusal(tmp_path, DEMO + admin, "--port", own)
    assert (code, out) == (1, "")
    said = f"port {number} on 127.0.0.1 is in use: stop the other program, or choose another with {setting}"
    assert line.endswith(said)


async def test_what_no_worker_can_start_with_is_one_complaint_and_exit_1(tmp_path: Path) -> None:
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_text("no PEM file")
    tls = "server: {port: 0, tls: {certificate: a.pem, key: b.pem}}\n"
    code, out, [line] = await refusal(tmp_path, tls + DEMO)
    assert (code, out) == (1, "")
    assert "server.tls" in line


async def test_a_worker_that_cannot_take_up_what_the_others_do_has_itself_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, far = socket.socketpair()
    figures, far_figures = socket.socketpair()
    line.setblocking(False)
    figures.setblocking(False)
    with line, far, far_figures:
        async with served("server: {port: 0}\n" + DEMO, tmp_path) as house:
            before = house.gateway._relay.table
            last = Reload(load(tmp_path / "routes.yaml", {}), 0.0)
            orders = StopOrders()
            await _Line(line, FiguresLine(figures), last).attend(orders, house.gateway)
            with_tools = {"tools": {"t": {"mcp": {"command": ["x"]}}}, "routes": {"m": {"tools": ["t"]}}}
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
            with parcel(Reload(Config.model_validate(with_tools), 1.0)) as descriptor:
                socket.send_fds(far, [bytes([signal.SIGHUP])], [descriptor])
            assert await asyncio.wait_for(orders.first, 10) == CANNOT_GO_ON
            assert house.gateway._relay.table is before
            asyncio.get_running_loop().remove_reader(line)
            far_figures.close()
            await asyncio.sleep(0.01)
