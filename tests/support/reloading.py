"""A served gateway whose file is read again, as SIGHUP has it done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.config.loader import load
from proxy.reload import Reload, Reloader
from tests.support.served import Served, served


@dataclass(frozen=True, slots=True)
class Reloading:
    """`served` takes up what `reload` writes into the file."""

    served: Served
    file: Path
    reloader: Reloader

    @property
    def port(self) -> int:
        return self.served.port

    def reload(self, routes_yaml: str) -> Reload:
        self.file.write_text(routes_yaml, encoding="utf-8")
        reload = self.reloader.reload()
        self.served.gateway.take_up(reload)
        return reload


@asynccontextmanager
async def reloading(routes_yaml: str, tmp_path: Path) -> AsyncIterator[Reloading]:
    """As `served`."""
    async with served(routes_yaml, tmp_path) as gateway:
        file = tmp_path / "routes.yaml"
        yield Reloading(gateway, file, Reloader(file, lambda: load(file, {})))
