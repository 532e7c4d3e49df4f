"""A replica that dies and comes back under load: requests move to the others, and back to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.cable import Cable, laid_cable
from tests.support.clients import Seen
from tests.support.dialects import SSE, ask
from tests.support.served import Served, served
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

WORDS = 10
CLIENTS = 8
PATIENCE_S = 20.0


async def telling(peer: Peer) -> None:
    """A stream of some words, 5 ms apart."""
    while True:
        await peer.request()
        await peer.send(OK_EVENTS)
        for _ in range(WORDS):
            await peer.send(chunk(content("x")))
            await asyncio.sleep(0.005)
        await peer.send(chunk(DONE), LAST_CHUNK)


class Load:
    """Clients that ask again and again; `seen` is what they saw, in the order of its end."""

    def __init__(self, gateway: Served) -> None:
        self._gateway = gateway
        self.seen: list[Seen] = []
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(CLIENTS)]

    async def some(self, more: int) -> list[Seen]:
        """The next so many."""
        before = len(self.seen)
        while len(self.seen) < before + more:
            await asyncio.sleep(0.005)
        return self.seen[before:]

    async def until_by(self, replica: int) -> None:
        """Until this one answers."""
        while not any(
            whole(seen) and seen.headers["x-penstock-replica"] == str(replica) for seen in await self.some(1)
        ):
            pass

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self) -> None:
        while True:
            self.seen.append(await ask(self._gateway, SSE))


def whole(seen: Seen) -> bool:
    return seen.done and len(seen.said) == WORDS and not seen.errors


def up(gateway: Served) -> list[float]:
    return [value for [value] in gateway.gateway.figures()["penstock_replica_up"].values()]


async def down_and_back(cable: Cable, load: Load, gateway: Served) -> None:
    await load.until_by(0)
    await load.until_by(1)
    await cable.cut()
    for seen in await load.some(CLIENTS):  # those that were in flight
        assert whole(seen) or [error["code"] for error in seen.errors] == ["upstream_truncated"]
    for seen in await load.some(5 * CLIENTS):  # those that came later
        assert whole(seen)
        assert seen.headers["x-penstock-replica"] == "1"
    while up(gateway) != [0, 1]:
        assert all(whole(seen) for seen in await load.some(1))
    await cable.lay()
    while up(gateway) != [1, 1]:
        assert all(whole(seen) for seen in await load.some(1))
    await load.until_by(0)


async def test_a_replica_that_dies_and_comes_back_under_load(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(telling) as one,
        scripted_upstream(telling) as other,
        laid_cable(one.url) as cable,
    ):
        routes = (
            f'server: {{port: 0}}\nroutes: {{m: {{replicas: ["{cable.url}", "{other.url}"], '
            "health: {every: 50ms, timeout: 1s, fall: 2, rise: 2}, breaker: {failures: 3, open_for: 60s}}}\n"
        )
        async with served(routes, tmp_path) as gateway:
            load = Load(gateway)
            try:
                await down_and_back(cable, load, gateway)
            finally:
                await load.stop()
            while gateway.gateway.figures()["penstock_streams_in_flight"][("m",)] != [0]:
                await asyncio.sleep(0.005)
