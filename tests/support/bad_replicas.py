"""Addresses where no model server answers, each for a reason of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.support.upstream import Script, scripted_upstream

BadReplica = Callable[[], AbstractAsyncContextManager[str]]
"""Gives the URL, which is as bad as it says while the block lasts."""


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """Bound, so that nobody else gets the port, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@asynccontextmanager
async def nameless() -> AsyncIterator[str]:
    """RFC 6761: this name is never found."""
    yield "http://replica.invalid:8000"


@asynccontextmanager
async def without_tls() -> AsyncIterator[str]:
    """Asked for TLS, it answers in plain words."""

    async def script(peer: object) -> None:
        await asyncio.sleep(0)

    async with scripted_upstream(script) as upstream:
        yield upstream.url.replace("http:", "https:")


@asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """Listens and never accepts, and its queue is full: a connection is never made."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        waiting = []
        for _ in range(3):
            queued = socket.socket()
            queued.setblocking(False)
            queued.connect_ex(address)
            waiting.append(queued)
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for queued in waiting:
                queued.close()


def playing(script: Script) -> BadReplica:
    """A replica that plays this script on each connection."""

    @asynccontextmanager
    async def replica() -> AsyncIterator[str]:
        async with scripted_upstream(script) as upstream:
            yield upstream.url

    return replica
