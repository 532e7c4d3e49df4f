"""The outlet of a session that speaks for itself: what it says besides a stream's frames goes out at once, and a client
that does not read it is not listened to meanwhile."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.downstream.outlet import Outlet
from proxy.downstream.session_socket import Socket
from proxy.wire.frames import text_frame

UNREAD_BYTES: Final = 256 * 1024
"""A client that has not read so much of what was said to it, streams aside, is not listened to."""


class SpokenOutlet(Outlet):
    """One socket's outlet. The session's duty: to `catch_up` before it takes the next message."""

    __slots__ = ("_caught_up", "_said_bytes")

    def __init__(self, socket: Socket) -> None:
        super().__init__(socket)
        socket.before_close = self.shut
        self._said_bytes = 0  # since the client fell behind
        self._caught_up: asyncio.Event | None = None

    def say(self, payload: bytes) -> int:
        """A frame of the gateway's own, now; how many bytes it has."""
        frame = text_frame(payload)
        if self._full:
            self._said_bytes += len(frame)
        self.put(frame)
        return len(frame)

    @property
    def clogged(self) -> bool:
        """More has been said than the client cares to read."""
        return self._said_bytes > UNREAD_BYTES and self._transport is not None

    async def catch_up(self) -> None:
        """Wait until the client has read most of what was said to it, or the socket closes."""
        while self.clogged:
            self._caught_up = asyncio.Event()
            try:
                await self._caught_up.wait()
            finally:
                self._caught_up = None

    def shut(self) -> None:
        super().shut()
        self._wake()

    def _change(self, paused: bool) -> None:
        super()._change(paused)
        if not paused:
            self._said_bytes = 0
            self._wake()

    def _wake(self) -> None:
        if self._caught_up is not None:
            self._caught_up.set()
