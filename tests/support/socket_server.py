"""Sessions' sockets without a gateway behind them: a port on which each is served by a function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from proxy.downstream.connection import ClientConnection
from proxy.downstream.handshake import switching
from proxy.downstream.server import ClientRunner
from proxy.downstream.session_socket import Socket
from proxy.downstream.written import PushedResponse, head_of

LARGEST_BYTES = 32 << 20

Serve = Callable[[Socket], Awaitable[None]]


@asynccontextmanager
async def socket_server(
    serve: Serve, *, message_bytes: int = LARGEST_BYTES, ping_s: float | None = 25.0
) -> AsyncIterator[int]:
    """The port; `serve` is called for each socket, which rests when it returns."""

    async def upgrade(request: web.Request) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, ClientConnection)
        upgraded = connection.upgraded()
        socket = Socket(upgraded, message_bytes=message_bytes, ping_s=ping_s)
        upgraded.transport.write(head_of(request, 101, switching(request, None), stays=True))
        socket.begin(_session(serve, socket))
        return PushedResponse(101, stays=False)

    app = web.Application()
    app.router.add_get("/", upgrade)
    runner = ClientRunner(app, 10.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _session(serve: Serve, socket: Socket) -> None:
    await serve(socket)
    await socket.rest()
