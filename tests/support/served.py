"""The gateway in the test's own event loop, on a free port: real sockets, and its records to look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from proxy.app import Gateway
from proxy.config.loader import load
from proxy.downstream.client_socket import ClientSocket
from proxy.downstream.connection import ClientConnection
from proxy.downstream.quick_connection import QuickConnection
from proxy.telemetry.record import RequestRecord

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """`records` are the finished requests', in the order of their ends."""

    url: str
    gateway: Gateway
    records: list[RequestRecord]

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def connections(self) -> list[ClientSocket]:
        """The clients' connections to all ports, as they are read at present."""
        servers = [runner.server for runner in self.gateway._runners]
        return [cast("ClientSocket", each) for server in servers if server is not None for each in server.connections]

    async def idle(self) -> None:
        """Wait until every client's connection is ready for its next request: an answer is read before that."""
        async with asyncio.timeout(PATIENCE_S):
            while not all(_is_idle(each) for each in self.connections):
                await asyncio.sleep(0)

    async def record(self, number: int = 0) -> RequestRecord:
        """The `number`th finished request's record, as soon as there is one."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.records) <= number:
                await asyncio.sleep(0.001)
        return self.records[number]


def _is_idle(connection: ClientSocket) -> bool:
    if isinstance(connection, ClientConnection):
        return connection._waiter is not None and not connection._waiter.done()
    return cast("QuickConnection", connection)._task_handler is None


@asynccontextmanager
async def served(routes_yaml: str, tmp_path: Path, environ: dict[str, str] | None = None) -> AsyncIterator[Served]:
    """Serve this configuration (its `server.port` should be 0) until the block ends."""
    file = tmp_path / "routes.yaml"
    file.write_text(routes_yaml, encoding="utf-8")
    records: list[RequestRecord] = []
    gateway = Gateway(load(file, environ or {}), records.append)
    try:
        yield Served(await gateway.start(), gateway, records)
    finally:
        await gateway.stop()


def one_route(url: str, *settings: str, server: str = "port: 0") -> str:
    """A configuration with the route `m` on one replica; `settings` are more lines of the route. What fails is tried
    again only where they say so."""
    if not any(line.startswith("retry:") for line in settings):
        settings = (*settings, "retry: {attempts: 1}")
    lines = ["server:", *(f"  {line}" for line in server.splitlines()), "routes:", "  m:", f"    replicas: ['{url}']"]
    return "\n".join([*lines, *(f"    {line}" for line in settings)]) + "\n"
