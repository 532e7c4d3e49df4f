"""The WebSocket sessions that are open: how many there may be, how many there are, how each of them runs and ends, and
that they are told to leave."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from aiohttp import WSCloseCode

from proxy.downstream.session_socket import Socket
from proxy.errors import InternalError
from proxy.telemetry.record import Dialect, EndState, RequestRecord

OVERLOADED = "overloaded"
"""Said instead of a status where the upgrade has to be accepted first: a page is not told why one was refused."""

logger = logging.getLogger("penstock")


class Session(Protocol):
    """One connection."""

    @property
    def dialect(self) -> Dialect: ...

    async def run(self) -> None:
        """Speak until one side leaves."""

    async def leave(self) -> None:
        """Close because the gateway goes away, once what runs has had its last word."""


class OpenSessions:
    """All of them. `most`: as many as may be open at once; `publish` gets the record of each at its end."""

    def __init__(self, most: int, publish: Callable[[RequestRecord], None]) -> None:
        self.most = most
        self._publish = publish
        self._open: set[Session] = set()

    def __iter__(self) -> Iterator[Session]:
        return iter(self._open)

    @property
    def full(self) -> bool:
        return len(self._open) >= self.most

    def serve(
        self, session: Session, socket: Socket, record: RequestRecord, on_over: Callable[[], None] | None = None
    ) -> None:
        """Run it on this socket, in a task of its own; `on_over` is called at its end."""
        self._open.add(session)
        socket.begin(self._run(session, socket, record, on_over))

    def turn_away(self, socket: Socket, record: RequestRecord) -> None:
        """It would be one more than there may be."""
        socket.begin(self._refuse(socket, record))

    def counted(self) -> Counter[Dialect]:
        """How many are open, by what they speak."""
        return Counter(session.dialect for session in self._open)

    async def close_all(self, within_s: float) -> None:
        """Tell every session that the gateway goes away, all at once; those that take longer are left to `stop`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(session.leave() for session in self._open))

    async def _run(
        self, session: Session, socket: Socket, record: RequestRecord, on_over: Callable[[], None] | None
    ) -> None:
        now = asyncio.get_running_loop().time
        try:
            try:
                await session.run()
                record.finish(EndState.COMPLETED, now())
            except Exception:
                logger.exception("request %s failed", record.request_id)
                record.status = InternalError.status
                record.finish(EndState.ERROR, now())
                socket.close(WSCloseCode.INTERNAL_ERROR, InternalError.default_code)
            await socket.rest()
        finally:
            record.finish(EndState.CLIENT_CLOSED, now())  # unless it has come to an end
            self._open.discard(session)
            if on_over is not None:
                on_over()
            self._publish(record)

    async def _refuse(self, socket: Socket, record: RequestRecord) -> None:
        record.finish(EndState.SHED, asyncio.get_running_loop().time())
        socket.close(WSCloseCode.TRY_AGAIN_LATER, OVERLOADED)
        try:
            await socket.rest()
        finally:
            self._publish(record)


def most_sessions() -> int:
    """Three quarters of the descriptors that this process may have: what sessions ask for needs some, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft * 3 // 4
