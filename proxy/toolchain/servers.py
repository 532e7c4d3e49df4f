"""All tool servers of a configuration: what they offer a route, and the way to them.

The `mcp` library is loaded when there is a route with tools, and not before: it is an extra, and takes half a second.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from os.path import dirname
from typing import TYPE_CHECKING

from proxy.config.model import Config, Tool
from proxy.errors import Unavailable
from proxy.toolchain.catalogue import Catalogue, Listed, Place, chosen, server_of
from proxy.toolchain.results import Outcome

if TYPE_CHECKING:
    from proxy.toolchain.server import ToolServer, ToolServerDown

_LIBRARY = "mcp"
_TALKATIVE = ("mcp", "client", "httpx", "httpcore")
"""Loggers of the library and of what it stands on: they would show addresses, headers, arguments and results."""

logger = logging.getLogger("penstock")


class LibraryMissing(Exception):
    """Routes name tools, and what runs them is not installed."""

    def __init__(self) -> None:
        super().__init__('a route has tools, and what runs them is not installed: pip install "penstock[mcp]"')


class ToolServers:
    """The servers, by name. Each starts when something of it is first needed. The owner's duty: `close` them.

    To be made in a running loop. Raises LibraryMissing.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        if tools:
            _load_library()
        self._settings = tools
        self._servers: dict[str, ToolServer] = {}

    @classmethod
    def of(cls, config: Config) -> ToolServers:
        """Those that a route of this configuration names."""
        return cls(_named(config))

    async def offer(self, wanted: Sequence[str]) -> Catalogue:
        """The tools that a route's `tools` name. A server that is out is left out, with a line in the log.

        Raises Unavailable where there are none left of what was wanted.
        """
        names = list(dict.fromkeys(server_of(entry, self._settings) for entry in wanted))
        answers = await asyncio.gather(*(self._listed(name) for name in names))
        listed = {name: answer for name, answer in zip(names, answers, strict=True) if isinstance(answer, tuple)}
        offered, missing = chosen(wanted, listed)
        for entry in missing:
            if server_of(entry, self._settings) in listed:
                logger.warning('tools: "%s" offers nothing of that name', entry)
        downs = [answer for answer in answers if not isinstance(answer, tuple)]
        if downs and not offered:
            raise _unavailable(downs)
        return Catalogue(offered)

    async def call(self, place: Place, arguments: dict[str, object]) -> Outcome:
        """Run a tool; what fails is an outcome too."""
        return await self._server(place.server).call(place.tool, arguments)

    async def close(self) -> None:
        await asyncio.gather(*(server.close() for server in self._servers.values()))
        self._servers.clear()

    def _server(self, name: str) -> ToolServer:
        from proxy.toolchain.server import ToolServer

        if name not in self._servers:
            self._servers[name] = ToolServer(name, self._settings[name])
        return self._servers[name]

    async def _listed(self, name: str) -> tuple[Listed, ...] | ToolServerDown:
        from proxy.toolchain.server import ToolServerDown

        try:
            return await self._server(name).tools()
        except ToolServerDown as down:
            return down


def require_library(config: Config) -> None:
    """Raises LibraryMissing where a route of this configuration has tools that nothing here can run."""
    if _named(config):
        _folder_of_library()


def _named(config: Config) -> dict[str, Tool]:
    """The servers that routes name."""
    wanted = {server_of(tool, config.tools) for route in config.routes.values() for tool in route.tools}
    return {name: tool for name, tool in config.tools.items() if name in wanted}


def _unavailable(downs: Sequence[ToolServerDown]) -> Unavailable:
    message = "; ".join(str(down) for down in downs)
    return Unavailable(message, code="tools_unavailable", retry_after_s=max(down.retry_after_s for down in downs))


def _load_library() -> None:
    """At the start, where nobody waits for it."""
    folder = _folder_of_library()
    importlib.import_module("proxy.toolchain.server")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    root = logging.getLogger()
    if not any(isinstance(each, _Silence) for each in root.filters):
        root.addFilter(_Silence(folder))


def _folder_of_library() -> str:
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise LibraryMissing
    return dirname(found.origin)


class _Silence(logging.Filter):
    """The library also speaks to the root logger itself, and quotes messages there."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(self._folder)
