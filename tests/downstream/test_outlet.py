"""An outlet on a real socket: what it counts, when it is behind, whose silence it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from proxy.downstream.client_socket import ClientSocket
from proxy.downstream.outlet import Outlet
from proxy.downstream.server import ClientRunner
from proxy.streams.stream import Stream
from tests.support.raw_client import RawClient, get, raw_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Act = Callable[[Outlet], Awaitable[None]]


@asynccontextmanager
async def outlet(act: Act) -> AsyncIterator[RawClient]:
    """A client whose request is answered by what `act` puts into its outlet; the connection then ends."""

    async def handler(request: web.Request) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, ClientSocket)
        made = Outlet(connection)
        try:
            await act(made)
        finally:
            made.close()
            made.cut()
        raise asyncio.CancelledError

    app = web.Application()
    app.router.add_get("/", handler)
    runner = ClientRunner(app, None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with raw_client(runner.addresses[0][1]) as client:
            await client.send(get("/"))
            yield client
    finally:
        await runner.cleanup()


def writing(out: Outlet, data: bytes) -> Callable[[], None]:
    def write() -> None:
        out.put(data)

    return write


async def test_what_is_put_goes_out_and_is_counted() -> None:
    counted: list[int] = []

    async def act(out: Outlet) -> None:
        assert out.put(b"one") is False
        assert out.put(b"three") is False
        counted.append(out.bytes_out)
        out.cut()
        assert out.put(b"never") is False
        counted.append(out.bytes_out)

    async with outlet(act) as client:
        assert await client.rest() == b"onethree"
    assert counted == [8, 8]


async def test_silence_is_broken_again_and_again_until_it_is_no_more_to_be() -> None:
    async def act(out: Outlet) -> None:
        out.break_silence(0.02, writing(out, b"."))
        await asyncio.sleep(0.05)
        out.break_silence(None, writing(out, b"!"))
        out.put(b"|")
        await asyncio.sleep(0.03)

    async with outlet(act) as client:
        silence, _, rest = (await client.rest()).partition(b"|")
    assert silence.strip(b".") == rest == b""
    assert len(silence) >= 2


async def test_what_is_put_puts_the_next_sign_of_life_off() -> None:
    async def act(out: Outlet) -> None:
        out.break_silence(0.2, writing(out, b"."))
        for _ in range(5):
            await asyncio.sleep(0.05)
            out.put(b"x")

    async with outlet(act) as client:
        assert await client.rest() == b"xxxxx"


async def test_a_reader_that_is_behind_is_told_of_and_not_pinged_and_its_stream_goes_on_when_it_has_caught_up() -> None:
    piece = b"x" * 4_000_000
    full = asyncio.Event()
    pings: list[float] = []
    drained: list[int] = []

    class Told(Stream):
        def drained(self) -> None:
            drained.append(1)

    async def act(out: Outlet) -> None:
        out.serve(Told())
        out.break_silence(0.02, lambda: pings.append(out.bytes_out))
        while not out.put(piece):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert (pings, drained) == ([], [])
        full.set()
        while not drained:
            await asyncio.sleep(0.01)

    async with outlet(act) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await full.wait()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await client.rest()) % len(piece) == 0
    assert drained == [1]
