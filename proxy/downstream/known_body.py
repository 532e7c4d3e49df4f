"""The body of a request with a known head: bytes of a known number, read off the connection as they come."""

from __future__ import annotations

import asyncio


class KnownBody:
    """Stands where aiohttp's requests have their reader. `feed` it what is read; wait for the `whole`."""

    __slots__ = ("_loop", "_missing", "_pieces", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, length: int) -> None:
        self._loop = loop
        self._missing = length
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> bytes:
        """What of `data` lies behind the body's end."""
        missing = self._missing
        if len(data) <= missing:
            piece, rest = data, b""
        else:
            piece, rest = data[:missing], data[missing:]
        if piece:
            self._pieces.append(piece)
            self._missing = missing - len(piece)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return rest

    def is_eof(self) -> bool:
        """Whether all of it has come (aiohttp's name)."""
        return self._missing == 0

    async def whole(self, pause_s: float | None) -> bytes:
        """All of it. Raises `TimeoutError` when nothing comes for `pause_s` seconds (None: wait for ever)."""
        while self._missing:
            self._waiter = self._loop.create_future()
            async with asyncio.timeout(pause_s):
                await self._waiter
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
