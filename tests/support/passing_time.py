"""Time that passes for kept streams alone: no test of when they end waits for it, or depends on the machine's pace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.streams.store import StreamStore
    from tests.support.served import Served

PATIENCE_S = 10.0


def store_of(gateway: Served) -> StreamStore:
    return gateway.gateway._streams.store


def pass_time(gateway: Served, seconds: float) -> None:
    """What is due by then is done. Of the real time that passes meanwhile the gateway takes note as ever: where a limit
    must not be reached, stay seconds away from it."""
    gateway.gateway._streams.expire(asyncio.get_running_loop().time() + seconds)


async def alone(gateway: Served, count: int = 1) -> None:
    """Until the gateway has seen that so many streams have lost their followers."""
    async with asyncio.timeout(PATIENCE_S):
        while len(store_of(gateway)._alone) != count:
            await asyncio.sleep(0.001)
