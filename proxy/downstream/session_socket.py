"""A session's socket: aiohttp's, with fairness between clients, and an end from outside for one that breaks the rules.

What is said on it, and how it ends otherwise, is the sessions'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiohttp import WSCloseCode, WSMessage, web

from proxy.wire.client_frames import Broken

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.web_request import BaseRequest

MESSAGES_A_TURN: Final = 16
"""After so many messages other clients have their turn: up to 0.3 ms, at 20 µs a message."""
FLOODED: Final = 4429
"""The close code for a flood, in the dialects that have codes of their own."""
LINGER_S = 1.0
"""How long one that breaks the rules may take to read why: what it has sent meanwhile, and nobody will read, makes the
system reset the connection as soon as it is closed."""


class Socket(web.WebSocketResponse):
    """aiohttp's, which calls `before_close` when its Close frame is about to go: nothing may follow that. The session's
    duty: `rest` when it is over. `flood_code` is the one that a flood of frames is closed with."""

    before_close: Callable[[], None] | None = None
    flood_code: int = WSCloseCode.POLICY_VIOLATION
    _received = 0
    _broken: Broken | None = None
    _breaking_off: asyncio.Task[None] | None = None
    _is_resting = False

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter:
        writer = await super().prepare(request)
        if self._broken is not None:
            self.break_off(self._broken)
        return writer

    async def receive(self, timeout: float | None = None) -> WSMessage:
        """The next message. Where many came together, others are served in between."""
        self._received += 1
        if self._received % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        return await super().receive(timeout)

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        if self.before_close is not None:
            self.before_close()
        return await super().close(code=code, message=message, drain=drain)

    def break_off(self, broken: Broken) -> None:
        """Close it, whatever its session is at, which hears of it as of any other end. Before the socket is open this
        waits for that."""
        self._broken = broken
        if self.prepared and self._breaking_off is None:
            code = WSCloseCode.MESSAGE_TOO_BIG if broken is Broken.TOO_LARGE else self.flood_code
            closing = self._break_off(code, broken.value)
            self._breaking_off = asyncio.get_running_loop().create_task(closing)

    async def rest(self) -> None:
        """The session is over. aiohttp's timer for the next ping would hold all of it until then (25 s), where its
        client has vanished."""
        self._cancel_heartbeat()
        self._is_resting = True
        if self._breaking_off is not None:
            await asyncio.wait([self._breaking_off])

    async def _break_off(self, code: int, reason: str) -> None:
        await self.close(code=code, message=reason.encode())
        await asyncio.sleep(LINGER_S)
        if not self._is_resting:  # else its connection is closed by whoever opened it
            super()._close_transport()

    def _close_transport(self) -> None:
        if self._broken is None:
            super()._close_transport()
