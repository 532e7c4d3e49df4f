"""Who waits in a listener's queue when it stops is served, by it or by who shares its socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from proxy.config.addresses import Address
from proxy.downstream.server import ClientRunner, server_tls
from proxy.listener import Listener
from proxy.ports import CannotListen, Port, bind
from tests.support.raw_client import get
from tests.support.tls import certificate

ANYWHERE = Address("127.0.0.1", 0)


@asynccontextmanager
async def listener(port: Port, says: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    """Answers everything with `says`."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=says)

    app = web.Application()
    app.router.add_get("/", answer)
    runner = ClientRunner(app, None)
    await runner.setup()
    made = Listener(port, runner, tls)
    try:
        await made.start()
        yield made
    finally:
        await runner.cleanup()
        port.close()


def waiting(port: Port, count: int) -> list[socket.socket]:
    """Clients that are connected, and have asked, before the loop could accept anybody: it stands still meanwhile."""
    clients = [socket.create_connection(port.address[:2]) for _ in range(count)]
    for client in clients:
        client.sendall(get("/", "Connection: close"))
        client.setblocking(False)
    return clients


async def answers(clients: list[socket.socket]) -> list[str]:
    """The bodies of what they get until they are hung up on."""
    found = []
    for client in clients:
        with client:
            answer = b""
            async with asyncio.timeout(10):
                while data := await asyncio.get_running_loop().sock_recv(client, 65536):
                    answer += data
            found.append(answer.partition(b"\r\n\r\n")[2].decode())
    return found


async def test_who_is_in_the_queue_when_it_stops_is_served() -> None:
    async with listener(bind("server", ANYWHERE, join=False), "served") as one:
        clients = waiting(one._port, 20)
        await one.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(one._port.address)
        assert await answers(clients) == ["served"] * 20


async def test_the_next_one_on_the_port_has_everybody_else() -> None:
    async with listener(bind("server", ANYWHERE, join=False), "old") as old:
        async with listener(old._port.again(), "new") as new:
            before = waiting(new._port, 40)
            await old.stop()
            after = waiting(new._port, 10)
            said = await answers(before)
            assert await answers(after) == ["new"] * 10
    assert set(said) == {"old", "new"}  # the kernel deals them out; 2^-39 that it does not


async def test_a_socket_that_was_passed_keeps_its_queue_for_who_else_has_it() -> None:
    shared = socket.create_server(ANYWHERE, backlog=64)
    shared.setblocking(False)
    address = Address(*shared.getsockname())
    async with listener(Port("server", address, (shared.dup(),), passed=True), "old") as old:
        clients = waiting(old._port, 5)
        await old.stop()
        async with listener(Port("server", address, (shared,), passed=True), "new"):
            assert await answers(clients) == ["new"] * 5


async def test_who_left_the_queue_before_it_stopped_is_not_waited_for() -> None:
    async with listener(bind("server", ANYWHERE, join=False), "served") as one:
        for client in waiting(one._port, 3):
            client.close()
        await one.stop()


async def test_a_handshake_of_tls_is_not_cut_by_a_stop(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(own))
    trusting.check_hostname = False
    tls = server_tls(str(own), str(key))
    async with listener(bind("server", ANYWHERE, join=False), "served", tls) as one:
        raw = socket.create_connection(one._port.address)
        raw.setblocking(False)
        stopping = asyncio.create_task(one.stop())
        reader, writer = await asyncio.open_connection(sock=raw, ssl=trusting, server_hostname="localhost")
        await stopping
        writer.write(get("/", "Connection: close"))
        assert (await reader.read()).endswith(b"served")
        writer.close()
        await writer.wait_closed()


async def test_a_port_that_somebody_else_took_after_it_was_bound_cannot_be_listened_on() -> None:
    first, second = socket.socket(), socket.socket()
    for each in (first, second):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    first.bind(ANYWHERE)
    second.bind(first.getsockname())
    first.listen()
    with first, pytest.raises(CannotListen) as failed:
        async with listener(Port("server", Address(*first.getsockname()), (second,))):
            pass
    assert failed.value.setting == "server"
    second.close()
