"""A thousand streams for minutes: clients leave, cancel and vanish, models break off, stall and fail, the file is
reloaded. Afterwards descriptors, tasks, memory and in-flight counts are back where they were."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.support.census import Census, count, descriptors, resident_kib
from tests.support.fated_model import fated_model
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.open_files import allow_many_files
from tests.support.prometheus import Page, scrape
from tests.support.soak_clients import Soak, bare_client, http_client
from tests.support.soak_lanes import LANES, mux_client, responses_client
from tests.support.soak_tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    Client = Callable[[Soak, Random], Coroutine[None, None, None]]

LENGTH_S = float(os.environ.get("PENSTOCK_SOAK_S", "180"))
SEED = 20
CLIENTS: tuple[tuple[int, Client], ...] = (
    (500, http_client),
    (180, bare_client),
    (10, mux_client),
    (10, responses_client),
)
STREAMS = 500 + 180 + 20 * LANES
GROWN_OBJECTS, GROWN_BLOCKS, GROWN_MALLOC_KIB = 1000, 5000, 1024
"""What may have come to stay between two quiet moments, some 10,000 streams apart: a metric's label, a warm cache. One
object left behind by each tenth stream, a piece of memory by every second, or 100 bytes by each would be as much."""
GROWN_RESIDENT_KIB = 48 * 1024
"""The same for the process: an arena of Python's (1 MiB) stays for as long as anything in it is in use, so a higher
peak, such as a machine that stalls makes, leaves more of them. A thousand streams add about as much."""
KEPT_S = 4.0  # streams that could be resumed are forgotten after 3 s
QUIET_WITHIN_S = 40.0
RELOADS = 15


def routes(url: str, keepalive: str = "1s") -> str:
    """The model pauses for 4 s at most: a machine may stand still for the rest of these 30 s, and nothing is cut."""
    route = (
        f"replicas: ['{url}'], health: none, breaker: none, retry: {{attempts: 1}}, keepalive: {keepalive}, "
        "timeouts: {first_token: 30s, idle: 30s}"
    )
    return (
        "server: {websocket: {detach: 2s, replay: 3s}}\ndiscover: false\nroutes:\n"
        f"  main: {{{route}}}\n"
        f"  tight: {{{route}, limits: {{streams: 30, queue: 30, queue_timeout: 2s}}}}\n"
    )


@dataclass
class World:
    """`curve`: seconds, resident MiB and streams in flight, every few seconds. `fresh`: descriptors at the start."""

    gateway: RunningGateway
    model_url: str
    configuration: Path
    fresh: int
    tally: Tally = field(default_factory=Tally)
    curve: list[tuple[int, int, int]] = field(default_factory=list)

    async def page(self) -> Page:
        return await scrape(self.port)

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    async def load(self, length_s: float, share: float = 1.0) -> None:
        """So long, with so much of all clients; then everybody leaves at once."""
        soak = Soak(self.port, self.tally)
        clients = [
            asyncio.create_task(client(soak, Random(f"{SEED} {length_s} {client.__name__} {number}")))
            for many, client in CLIENTS
            for number in range(max(1, int(many * share)))
        ]
        await asyncio.wait(clients, timeout=length_s, return_when=asyncio.FIRST_COMPLETED)
        for each in clients:
            each.cancel()
        for end in await asyncio.gather(*clients, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                self.tally.flaw(f"a client failed: {end!r}")

    async def quiet(self) -> Census:
        """What there is once nothing is in flight or kept any more, and descriptors are as many as at first."""
        async with asyncio.timeout(QUIET_WITHIN_S):
            while (await self.page()).total("penstock_streams_in_flight"):
                await asyncio.sleep(0.2)
            await asyncio.sleep(KEPT_S)
            while descriptors(self.gateway.process.pid) > self.fresh:
                await asyncio.sleep(0.2)
        return await count(self.gateway)

    async def watch(self) -> None:
        """Notes down the curve."""
        start = asyncio.get_running_loop().time()
        while True:
            in_flight = (await self.page()).total("penstock_streams_in_flight")
            resident_mib = resident_kib(self.gateway.process.pid) // 1024
            self.curve.append((round(asyncio.get_running_loop().time() - start), resident_mib, int(in_flight)))
            await asyncio.sleep(LENGTH_S / 40)

    async def reload(self) -> None:
        """Every few seconds another file: the routes with other settings and one more, the first ones, or a bad one."""
        for text in cycle((routes(self.model_url, "2s") + "  more: demo://\n", routes(self.model_url), "routes: [")):
            await asyncio.sleep(LENGTH_S / RELOADS)
            self.configuration.write_text(text, encoding="utf-8")
            self.gateway.process.send_signal(signal.SIGHUP)


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        fated_model() as model,
        running_gateway(routes(model.url), tmp_path, module="tests.support.census") as gateway,
    ):
        fresh = descriptors(gateway.process.pid)
        there = World(gateway, model.url, tmp_path / "routes.yaml", fresh)
        also = [asyncio.create_task(there.watch()), asyncio.create_task(there.reload())]
        try:
            yield there
        finally:
            for task in also:
                task.cancel()
            ends = await asyncio.gather(*also, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@pytest.mark.slow
@pytest.mark.timeout(LENGTH_S + 240)
async def test_after_minutes_of_a_thousand_streams_everything_is_back_at_the_baseline(tmp_path: Path) -> None:
    allow_many_files()
    async with world(tmp_path) as soak:
        await soak.load(3, share=0.1)
        first = await soak.quiet()
        await soak.load(LENGTH_S / 3)
        before = await soak.quiet()
        await soak.load(LENGTH_S * 2 / 3)
        after = await soak.quiet()
        page = await soak.page()
        log = soak.gateway.log()
    print(*soak.curve, *sorted(soak.tally.outcomes.items()), sep="\n")
    print(*(replace(each, kinds=Counter()) for each in (first, before, after)), *soak.tally.flaws[:20], sep="\n")
    assert soak.tally.flaws == []
    assert soak.tally.outcomes.total() > 20 * LENGTH_S
    assert max(in_flight for _, _, in_flight in soak.curve) > 0.9 * STREAMS
    for name in ("penstock_streams_in_flight", "penstock_queue_depth", "penstock_websocket_sessions"):
        assert page.total(name) == 0, name
    assert page.total("penstock_requests_total", outcome="error") == 0
    assert page.total("penstock_config_reloads_total") >= RELOADS - 1  # the last may be on its way
    assert "Traceback" not in log
    assert after.tasks == before.tasks == first.tasks
    assert after.objects - before.objects < GROWN_OBJECTS, after.more_than(before)
    assert after.blocks - before.blocks < GROWN_BLOCKS, after.more_than(before)
    assert after.malloc_kib - before.malloc_kib < GROWN_MALLOC_KIB
    assert after.resident_kib - before.resident_kib < GROWN_RESIDENT_KIB, soak.curve
