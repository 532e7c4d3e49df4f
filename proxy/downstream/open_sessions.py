"""The WebSocket sessions that are open: how many there may be, how many there are, and that they are told to leave."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from proxy.telemetry.record import Dialect


class Session(Protocol):
    """One connection."""

    @property
    def dialect(self) -> Dialect: ...

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""


class OpenSessions:
    """All of them. `most`: as many as may be open at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: set[Session] = set()

    def __iter__(self) -> Iterator[Session]:
        return iter(self._open)

    @property
    def full(self) -> bool:
        return len(self._open) >= self.most

    def add(self, session: Session) -> None:
        """The owner's duty: `discard`."""
        self._open.add(session)

    def discard(self, session: Session) -> None:
        self._open.discard(session)

    def counted(self) -> Counter[Dialect]:
        """How many are open, by what they speak."""
        return Counter(session.dialect for session in self._open)

    async def close_all(self, within_s: float) -> None:
        """Tell every session that the gateway goes away, all at once; those that take longer are left to `stop`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(session.leave() for session in self._open))


def most_sessions() -> int:
    """Three quarters of the descriptors that this process may have: what sessions ask for needs some, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft * 3 // 4
