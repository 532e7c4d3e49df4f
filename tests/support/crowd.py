"""Clients who connect, and then say nothing or never say all: sockets without a transport or a reader, thousands of
them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.resetting import leave_at_once

AT_ONCE = 500
"""So many connect before it is waited for them: fewer than may be in a listening socket's queue."""


class Crowd:
    """`sockets` are connected to the port, and do not block."""

    def __init__(self, port: int) -> None:
        self.sockets: list[socket.socket] = []
        self._port = port

    async def grow(self, many: int, arrived: Callable[[int], bool]) -> None:
        """So many more come. `arrived` says whether so many of all have been let in."""
        for start in range(0, many, AT_ONCE):
            for _ in range(min(AT_ONCE, many - start)):
                client = socket.create_connection(("127.0.0.1", self._port))
                client.setblocking(False)
                self.sockets.append(client)
            while not arrived(len(self.sockets)):
                await asyncio.sleep(0)

    def say(self, data: bytes, *, every: int = 1) -> None:
        """Every so-manyth of them sends this."""
        for client in self.sockets[::every]:
            assert client.send(data) == len(data)

    def leave(self) -> None:
        """All of them, at once."""
        for client in self.sockets:
            leave_at_once(client)
        self.sockets.clear()


@asynccontextmanager
async def crowd(port: int) -> AsyncIterator[Crowd]:
    """Nobody yet; whoever is still there leaves when the block ends."""
    there = Crowd(port)
    try:
        yield there
    finally:
        there.leave()
