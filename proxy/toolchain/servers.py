"""All tool servers of a configuration: what they offer a route, the way to them, and what becomes of them when another
configuration follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from proxy.config.model import Config, Tool
from proxy.errors import Unavailable
from proxy.toolchain.catalogue import Catalogue, Listed, Place, chosen, server_of
from proxy.toolchain.library import LibraryMissing, find_library, load_library
from proxy.toolchain.results import Outcome

if TYPE_CHECKING:
    from proxy.toolchain.server import ToolServer, ToolServerDown

__all__ = ["LibraryMissing", "ToolServers", "require_library"]

logger = logging.getLogger("penstock")


class ToolServers:
    """The servers, by name. Each starts when something of it is first needed. The owner's duty: `close` them.

    To be made in a running loop. Those that are the same in `before` are shared with it. Raises LibraryMissing.
    """

    def __init__(self, tools: Mapping[str, Tool], before: ToolServers | None = None) -> None:
        if tools:
            load_library()
        self._settings = tools
        self._servers = {name: _server(name, tool, before) for name, tool in tools.items()}
        for server in self._servers.values():
            server.owners += 1
        self._holders = 0
        self._is_over = False
        self._former: set[ToolServers] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, config: Config) -> ToolServers:
        """Those that a route of this configuration names."""
        return cls(_named(config))

    async def offer(self, wanted: Sequence[str]) -> Catalogue:
        """The tools that a route's `tools` name. A server that is out is left out, with a line in the log.

        Raises Unavailable where there are none left of what was wanted.
        """
        names = list(dict.fromkeys(server_of(entry, self._settings) for entry in wanted))
        known = [name for name in names if name in self._servers]
        answers = await asyncio.gather(*(self._listed(name) for name in known))
        listed = {name: answer for name, answer in zip(known, answers, strict=True) if isinstance(answer, tuple)}
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
        return await self._servers[place.server].call(place.tool, arguments)

    async def close(self) -> None:
        """At once, and those of former configurations too."""
        everybody = {server for each in (self, *self._former) for server in each._servers.values()}
        closing = [task for each in (self, *self._former) for task in each._closing]
        await asyncio.gather(*(server.close() for server in everybody), *closing)
        self._former.clear()

    # ---- another configuration ----

    def succeed(self, config: Config) -> ToolServers:
        """Those of another configuration, to be used and closed instead of these. Servers that are not in it end, as
        soon as nobody holds these any more. Raises LibraryMissing; then nothing has changed."""
        successor = ToolServers(_named(config), self)
        successor._former = {each for each in (*self._former, self) if each._holders or each._closing}
        successor._former.add(self)
        self._is_over = True
        self._part()
        return successor

    def hold(self) -> ToolServers:
        """These, for a run that begins: they stay for it, whatever is reloaded meanwhile. Its duty: `release`."""
        self._holders += 1
        return self

    def release(self) -> None:
        """The run is over."""
        self._holders -= 1
        self._part()

    def _part(self) -> None:
        """From the servers, once nothing needs them."""
        if not self._is_over or self._holders:
            return
        for server in self._servers.values():
            server.owners -= 1
            if not server.owners:
                task = asyncio.create_task(server.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def _listed(self, name: str) -> tuple[Listed, ...] | ToolServerDown:
        from proxy.toolchain.server import ToolServerDown

        try:
            return await self._servers[name].tools()
        except ToolServerDown as down:
            return down


def require_library(config: Config) -> None:
    """Raises LibraryMissing where a route of this configuration has tools that nothing here can run."""
    if _named(config):
        find_library()


def _server(name: str, tool: Tool, before: ToolServers | None) -> ToolServer:
    from proxy.toolchain.server import ToolServer

    if before is not None and before._settings.get(name) == tool:
        return before._servers[name]
    return ToolServer(name, tool)


def _named(config: Config) -> dict[str, Tool]:
    """The servers that routes name."""
    wanted = {server_of(tool, config.tools) for route in config.routes.values() for tool in route.tools}
    return {name: tool for name, tool in config.tools.items() if name in wanted}


def _unavailable(downs: Sequence[ToolServerDown]) -> Unavailable:
    message = "; ".join(str(down) for down in downs)
    return Unavailable(message, code="tools_unavailable", retry_after_s=max(down.retry_after_s for down in downs))
