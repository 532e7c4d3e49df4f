"""A TCP line that a test can watch, cut and lay again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Cable:
    """A TCP line to `target` that can be cut and laid again on the same port. `lines` are the connections now open."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._joined = 0
        self._swallowed = 0  # of all that were joined, so many carry nothing any more
        self.lines = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def lay(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    def swallow(self) -> None:
        """The connections now open carry nothing more, not even their end: as where a machine slept, or a router forgot
        them. New ones are as ever."""
        self._swallowed = self._joined

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._ends |= {writer, far_writer}
        self._joined += 1
        number = self._joined
        self.lines += 1
        await asyncio.gather(self._carry(number, reader, far_writer), self._carry(number, far_reader, writer))
        self.lines -= 1

    async def _carry(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if number > self._swallowed:
                    writer.write(data)
        except ConnectionError:
            pass
        if number > self._swallowed:
            writer.transport.abort()


@asynccontextmanager
async def laid_cable(target: str) -> AsyncIterator[Cable]:
    cable = Cable(target)
    await cable.lay()
    try:
        yield cable
    finally:
        await cable.cut()
