"""One request's tools: what the model was offered of them, and the calls it makes, run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from proxy.toolchain.calls import Call
from proxy.toolchain.catalogue import Catalogue, Place
from proxy.toolchain.results import CallResult, Outcome, failed

QUOTED_CHARACTERS = 200


class ToolRunner(Protocol):
    """Who runs a tool: the tool servers. What fails is an outcome too."""

    async def call(self, place: Place, arguments: dict[str, object]) -> Outcome: ...


class Toolbox:
    """Runs calls, `parallel` at once at the most."""

    def __init__(self, catalogue: Catalogue, servers: ToolRunner, *, parallel: int) -> None:
        self.catalogue = catalogue
        self._servers = servers
        self._parallel = parallel
        self._now = asyncio.get_running_loop().time

    async def run(self, calls: Sequence[Call]) -> list[CallResult]:
        """The calls' results, in the calls' order. Cancelled, it cancels all of them."""
        places = asyncio.Semaphore(self._parallel)

        async def run(call: Call) -> CallResult:
            async with places:
                began = self._now()
                outcome = await self._outcome(call)
                return CallResult(call, outcome, round((self._now() - began) * 1000, 1))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(call)) for call in calls]
        return [task.result() for task in tasks]

    async def _outcome(self, call: Call) -> Outcome:
        place = self.catalogue.find(call.name)
        if place is None:
            return failed(f'there is no tool "{call.name[:QUOTED_CHARACTERS]}"; there are: {self._names()}')
        arguments = call.arguments
        if arguments is None:
            return failed(f"the arguments are not a JSON object: {call.text[:QUOTED_CHARACTERS]}")
        return await self._servers.call(place, arguments)

    def _names(self) -> str:
        return ", ".join(self.catalogue.names) or "none"
