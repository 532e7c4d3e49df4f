"""A heartbeat: whether a client that says nothing is still there."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.wire.frames import ping_frame

_PING: Final = ping_frame()


class Heartbeat:
    """Pings a client that has been silent for `every_s` seconds (None: never), and drops the connection of one that is
    silent for half of that again.

    One timer, however much is heard. The owner's duty: `begin`, and `stop`; who is not listened to cannot answer.
    """

    __slots__ = ("_every_s", "_heard_at", "_is_asked", "_loop", "_timer", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, every_s: float | None) -> None:
        self._loop = loop
        self._transport = transport
        self._every_s = every_s
        self._heard_at = 0.0
        self._is_asked = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        if self._every_s is not None:
            self.heard(self._loop.time())
            self._timer = self._loop.call_later(self._every_s, self._check, self._every_s)

    def heard(self, now: float) -> None:
        """The client has said something, whatever it was."""
        self._heard_at = now
        self._is_asked = False

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, every_s: float) -> None:
        self._timer = None
        if self._is_asked:
            self._transport.abort()
            return
        due = self._heard_at + every_s
        now = self._loop.time()
        if due <= now:
            self._is_asked = True
            self._transport.write(_PING)
            due = now + every_s / 2
        self._timer = self._loop.call_at(due, self._check, every_s)
