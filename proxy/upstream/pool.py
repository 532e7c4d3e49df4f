"""Connections to replicas: opened, kept for a moment between exchanges, shared by all routes of the same origin."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import defaultdict
from collections.abc import Container
from functools import partial

from proxy.errors import UpstreamUnreachable
from proxy.routing.replica import Origin
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.dialling import shortage
from proxy.upstream.gather import Gatherer

KEEP_S = 4.0
"""How long an unused connection is kept. uvicorn (vLLM, SGLang, transformers serve) closes its own after 5 s."""


class Pool:
    """Owns every upstream connection. Idle ones are handed out newest first, so that a quiet pool shrinks."""

    def __init__(self, gatherer: Gatherer | None = None) -> None:
        self._gatherer = gatherer
        self._loop = asyncio.get_running_loop()
        self._idle: defaultdict[Origin, dict[UpstreamConnection, float]] = defaultdict(dict)
        self._all: set[UpstreamConnection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def connection(self, origin: Origin, *, connect_timeout_s: float | None, fresh: bool) -> UpstreamConnection:
        """A connection that can take a request now; `fresh` asks for a new one.

        Raises `UpstreamUnreachable`, whose message has no address in it, or `Unavailable` where the fault is ours.
        """
        if not fresh:
            idle = self._idle[origin]
            while idle:
                kept, _ = idle.popitem()
                if kept.usable:
                    return kept
        return await self._connect(origin, connect_timeout_s)

    def keep_only(self, origins: Container[Origin]) -> None:
        """Close the idle connections to all others; those in use are closed soon after they are given back."""
        for origin in [origin for origin in self._idle if origin not in origins]:
            for connection in list(self._idle.pop(origin)):
                connection.close()

    async def close(self) -> None:
        """Close every connection, idle or not."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for connection in list(self._all):
            connection.close()
        while self._all:  # each one's connection_lost comes in one of the next turns
            await asyncio.sleep(0)

    async def _connect(self, origin: Origin, timeout_s: float | None) -> UpstreamConnection:
        connection = UpstreamConnection(partial(self._keep, origin), partial(self._forget, origin), self._gatherer)
        try:
            async with asyncio.timeout(timeout_s):
                await self._open(origin, connection)
        except TimeoutError as error:  # ours, or, after minutes, the kernel's
            limit = f" ({timeout_s:g} s)" if timeout_s is not None else ""
            raise UpstreamUnreachable(f"no connection within timeouts.connect{limit}") from error
        except ssl.SSLError as error:
            raise UpstreamUnreachable(f"TLS failed ({error.reason or 'no reason given'})") from error
        except (socket.gaierror, UnicodeError) as error:
            raise UpstreamUnreachable("its host name cannot be resolved") from error
        except OSError as error:
            raise shortage(error) or UpstreamUnreachable(_refusal(error)) from error
        if not connection.usable:
            raise UpstreamUnreachable("the connection was closed as soon as it was made")
        self._all.add(connection)
        return connection

    async def _open(self, origin: Origin, connection: UpstreamConnection) -> None:
        if origin.scheme == "demo":
            from proxy.upstream import demo  # here: most gateways have none, and it is a twentieth of their start

            demo.connect(lambda: connection, demo.DemoSettings.parse(f"demo://?{origin.query}"))
        elif origin.scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context()
            await self._loop.create_connection(lambda: connection, origin.host, origin.port, ssl=self._tls)
        else:
            await self._loop.create_connection(lambda: connection, origin.host, origin.port)

    def _keep(self, origin: Origin, connection: UpstreamConnection) -> None:
        self._idle[origin][connection] = self._loop.time()
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(KEEP_S, self._sweep)

    def _forget(self, origin: Origin, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        if origin in self._idle:
            self._idle[origin].pop(connection, None)

    def _sweep(self) -> None:
        self._sweep_timer = None
        too_old = self._loop.time() - KEEP_S
        oldest: float | None = None
        for idle in self._idle.values():
            for connection, since in list(idle.items()):
                if since <= too_old:
                    del idle[connection]
                    connection.close()
                elif oldest is None or since < oldest:
                    oldest = since
        if oldest is not None:
            self._sweep_timer = self._loop.call_at(oldest + KEEP_S, self._sweep)


def _refusal(error: OSError) -> str:
    # Where a name has several addresses, asyncio joins what each one said into the text of one plain OSError.
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "the connection was refused; is the model server running?"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    return "no connection could be made"
