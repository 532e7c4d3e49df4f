"""A model server's Realtime side, written with an independent library: it echoes, and does what it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

Play = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    """Say back whatever comes."""
    async for message in connection:
        await connection.send(message)


@dataclass(slots=True)
class RealtimeServer:
    """`url` to put into routes.yaml; `sockets` in the order they were opened, `requests` likewise, refused ones too.

    `refuses`: the status, headers and body that every upgrade is answered with, while there is one.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    sockets: list[ServerConnection] = field(default_factory=list)
    refuses: tuple[int, dict[str, str], bytes] | None = None

    async def closed(self, number: int = 0) -> tuple[int | None, str | None]:
        """The code and the reason that the `number`th socket was closed with; (1006, "") if it just went."""
        async with asyncio.timeout(5):
            while len(self.sockets) <= number:
                await asyncio.sleep(0.001)
            await self.sockets[number].wait_closed()
        return self.sockets[number].close_code, self.sockets[number].close_reason


@asynccontextmanager
async def realtime_server(
    play: Play = echo, *, selects: str | None = None, queue: int = 16, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RealtimeServer]:
    """Serve with `play`, called once a socket, which is closed with 1000 when it returns.

    `selects`: the subprotocol; `queue`: how many messages are taken in before `play` asks for them.
    """
    server = RealtimeServer()

    def judge(connection: ServerConnection, request: Request) -> Response | None:
        server.requests.append(request)
        if server.refuses is None:
            return None
        status, headers, body = server.refuses
        framed = {**headers, "Content-Length": str(len(body)), "Connection": "close"}
        return Response(status, "Status", Headers(framed), body)

    async def run(connection: ServerConnection) -> None:
        server.sockets.append(connection)
        with suppress(ConnectionClosed):  # the test's to look at
            await play(connection)

    def select(connection: ServerConnection, offered: object) -> Subprotocol | None:
        return Subprotocol(selects) if selects is not None else None

    async with serve(
        run,
        "127.0.0.1",
        0,
        process_request=judge,
        select_subprotocol=select,
        compression=None,
        max_size=None,
        ping_interval=None,
        max_queue=queue,
        ssl=tls,
        close_timeout=1,
    ) as listening:
        host, port = next(iter(listening.sockets)).getsockname()[:2]
        server.url = f"{'http' if tls is None else 'https'}://{host}:{port}"
        yield server
