"""One penstock takes over from another while clients connect all the time: nobody is turned away, no stream is cut."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.config.addresses import Address
from proxy.ports import bind
from tests.support.gateway import RunningGateway
from tests.support.raw_client import RawClient, chat, post, raw_client
from tests.support.requests_without_end import asking
from tests.support.service import service

QUICK = "demo://?tokens=2&interval=1ms&first=1ms"
LONG = "demo://?tokens=40&interval=20ms&first=1ms"
CLIENTS, STREAMS = 6, 20

IN_QUEUE = 100

Start = Callable[[], AbstractAsyncContextManager[RunningGateway]]


@asynccontextmanager
async def by_joining(file: Path, *args: str) -> AsyncIterator[tuple[int, Start]]:
    """Each process binds the port, and lets others join it."""
    reserved = bind("server", Address("127.0.0.1", 0), join=False)
    port = reserved.address.port
    try:
        yield port, lambda: service(file, "--reuse-port", "--port", str(port), *args)
    finally:
        reserved.close()


@asynccontextmanager
async def by_activation(file: Path, *args: str) -> AsyncIterator[tuple[int, Start]]:
    """All processes are passed the same socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as shared:
        yield shared.getsockname()[1], lambda: service(file, *args, sockets={"penstock.socket": shared})


async def begin_streams(stack: AsyncExitStack, port: int) -> list[RawClient]:
    """Streams that have begun, and that take a while."""
    streams = [await stack.enter_async_context(raw_client(port)) for _ in range(STREAMS)]
    for client in streams:
        await client.send(post("/v1/chat/completions", chat("long"), "Connection: close"))
    for client in streams:
        await client.reader.readuntil(b"content")
    return streams


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", [by_joining, by_activation])
async def test_nobody_notices_that_processes_come_and_go(
    way: Callable[..., AbstractAsyncContextManager[tuple[int, Start]]], workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text(f"routes: {{m: '{QUICK}', long: '{LONG}'}}\n")
    async with way(file, "--workers", str(workers)) as (port, start), AsyncExitStack() as stack:
        old = await stack.enter_async_context(start())
        async with asking(port, CLIENTS) as tally:
            for _ in range(3 - workers):
                streams = await begin_streams(stack, port)
                new = await stack.enter_async_context(start())
                await tally.further(5)
                old.process.terminate()
                rest = await asyncio.gather(*(client.rest() for client in streams))
                assert [data for data in rest if not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")] == []
                assert await asyncio.wait_for(old.process.wait(), 20) == 0
                await tally.further(20)
                old = new
        assert tally.failures == []


@pytest.mark.parametrize("way", [by_joining, by_activation])
async def test_who_has_connected_when_it_is_told_to_stop_is_served(
    way: Callable[..., AbstractAsyncContextManager[tuple[int, Start]]], tmp_path: Path
) -> None:
    """It stands still while they connect, and hears of them and of the stop at once. What is left in a queue that is
    shared is for the next one."""
    file = tmp_path / "routes.yaml"
    file.write_text(f"routes: {{m: '{QUICK}'}}\n")
    async with way(file) as (port, start), AsyncExitStack() as stack:
        old = await stack.enter_async_context(start())
        old.process.send_signal(signal.SIGSTOP)
        clients = [await stack.enter_async_context(raw_client(port)) for _ in range(IN_QUEUE)]
        body = post("/v1/chat/completions", chat(), "Connection: close")
        for client in clients:
            await client.send(body)
        old.process.terminate()
        old.process.send_signal(signal.SIGCONT)
        await stack.enter_async_context(start())
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert [answer for answer in answers if answer.status != 200 or not answer.whole] == []
        assert await asyncio.wait_for(old.process.wait(), 20) == 0
