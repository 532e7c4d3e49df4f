"""Replicas that are killed and started again under load, and one that says nothing: what can be served elsewhere is,
and what was cut off in the middle says so."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from random import Random
from statistics import quantiles
from typing import TYPE_CHECKING

import pytest

from tests.support.fate import Fate
from tests.support.fated_model import FatedModel, fated_model
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.prometheus import scrape
from tests.support.raw_client import RawAnswer, RawClient, post, raw_client
from tests.support.soak_clients import CHAT, read_chat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

REQUESTS = 10_000
KILLS = 4
CLIENTS = 24
SEED = 20
QUICK, SLOW = Fate(3, 0.0, "done"), Fate(6, 0.03, "done")
"""Nine of ten answers are there at once; a kill meets some of the others in the middle."""
PATIENCE_S = 60.0
FIRST_TOKEN_S = 1.0


@dataclass
class Load:
    """`outcomes`: whole, cut (words, and then one error), failed (anything else: it could have been served elsewhere,
    or it looks whole and is not). `failures` are the first of those; `times_s` how long each answer took."""

    port: int
    route: str = "m"
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[RawAnswer] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    times_s: list[float] = field(default_factory=list)

    async def client(self, rng: Random) -> None:
        """Asks until it is cancelled; the connection is a new one now and then."""
        while True:
            async with raw_client(self.port) as client:
                for _ in range(50):
                    await self._ask(client, SLOW if rng.random() < 0.1 else QUICK)

    async def _ask(self, client: RawClient, fate: Fate) -> None:
        body = {"model": self.route, "stream": True, "messages": [{"role": "user", "content": fate.prompt}]}
        start = asyncio.get_running_loop().time()
        await client.send(post(CHAT, body))
        answer = await client.answer(patience_s=PATIENCE_S)
        self.times_s.append(asyncio.get_running_loop().time() - start)
        self.attempts[answer.headers.get("x-penstock-attempts", "none")] += 1
        outcome = _outcome(answer, fate)
        self.outcomes[outcome] += 1
        if outcome == "failed":
            self.failures.append(answer)

    async def until(self, many: int) -> None:
        while self.outcomes.total() < many:
            await asyncio.sleep(0.01)


def _outcome(answer: RawAnswer, fate: Fate) -> str:
    told = read_chat(answer)
    if answer.status != 200 or not answer.whole or told.said != fate.said[: len(told.said)]:
        return "failed"
    if told.ended and not told.errors and told.said == fate.said:
        return "whole"
    cut = told.said and not told.ended and told.errors == ["upstream_truncated"]
    return "cut" if cut else "failed"


@asynccontextmanager
async def under_load(gateway: RunningGateway, route: str = "m", clients: int = CLIENTS) -> AsyncIterator[Load]:
    load = Load(int(gateway.url.rpartition(":")[2]), route)
    asking = [asyncio.create_task(load.client(Random(f"{SEED} {number}"))) for number in range(clients)]
    try:
        yield load
    finally:
        for task in asking:
            task.cancel()
        ends = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def are_up(load: Load, *replicas: int) -> None:
    """Wait until the gateway takes these for well again."""
    while True:
        page = await scrape(load.port)
        names = [{"route": load.route, "replica": str(replica)} for replica in replicas]
        if all(
            page.get("penstock_replica_up", **name) == 1 and page.get("penstock_breaker_state", **name) == 0
            for name in names
        ):
            return
        await asyncio.sleep(0.02)


async def killed_in_turn(load: Load, models: list[FatedModel]) -> int:
    """One is dead for a moment, the other serves; then the other way round. How many were killed."""
    kills = 0
    while load.outcomes.total() < REQUESTS or kills < KILLS:
        model = models[kills % 2]
        await are_up(load, 0, 1)
        await load.until(load.outcomes.total() + 200)
        await model.kill()
        kills += 1
        await load.until(load.outcomes.total() + 100)
        await model.start()
    return kills


@pytest.mark.slow
async def test_of_ten_thousand_requests_none_fails_while_replicas_are_killed_and_come_back(tmp_path: Path) -> None:
    async with asyncio.timeout(2 * PATIENCE_S), fated_model() as one, fated_model() as other:
        routes = (
            f"discover: false\nroutes: {{m: {{replicas: ['{one.url}', '{other.url}'], "
            "health: {every: 100ms, fall: 2, rise: 1}, timeouts: {first_token: 20s}}}\n"
        )
        async with running_gateway(routes, tmp_path) as gateway, under_load(gateway) as load:
            kills = await killed_in_turn(load, [one, other])
        log = gateway.log()
    print(kills, "kills;", load.outcomes, "attempts:", load.attempts)
    assert load.failures == []
    assert load.outcomes["whole"] > 0.9 * REQUESTS
    assert kills >= KILLS
    assert load.attempts["2"] > 0  # a kill was met, and somebody else asked
    assert "Traceback" not in log


@contextmanager
def silent() -> Iterator[str]:
    """The kernel accepts for it, and nobody ever says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
async def test_a_replica_that_says_nothing_is_left_alone_and_costs_the_others_nothing(tmp_path: Path) -> None:
    async with asyncio.timeout(2 * PATIENCE_S), fated_model() as model:
        with silent() as stalled:
            # Three times the same server: what is measured is the way to it.
            settings = f"health: none, breaker: {{open_for: 120s}}, timeouts: {{first_token: {FIRST_TOKEN_S}s}}"
            well = f"'{model.url}', '{model.url}/', '{model.url}/v1'"
            routes = (
                "discover: false\nroutes:\n"
                f"  well: {{replicas: [{well}], {settings}}}\n"
                f"  ill: {{replicas: [{well}, '{stalled}'], {settings}}}\n"
            )
            async with running_gateway(routes, tmp_path) as gateway:
                async with under_load(gateway, "well", 8) as usual:
                    await usual.until(1000)
                async with under_load(gateway, "ill", 8) as before:
                    while await breaker_of_the_stalled(before) != 2:
                        await asyncio.sleep(0.02)
                async with under_load(gateway, "ill", 8) as after:
                    await after.until(1000)
    for name, load in (("usual", usual), ("before", before), ("after", after)):
        print(name, load.outcomes, f"p50 {p(load, 50):.1f} ms, p99 {p(load, 99):.1f} ms, attempts:", load.attempts)
    assert usual.failures == before.failures == after.failures == []
    assert before.attempts["2"] >= 5  # until the breaker opened, some waited, and were served by another
    assert set(after.attempts) == {"1"}
    assert p(after, 99) < FIRST_TOKEN_S * 1000  # nobody waits for it; else one of four would


async def breaker_of_the_stalled(load: Load) -> float | None:
    return (await scrape(load.port)).get("penstock_breaker_state", route="ill", replica="3")


def p(load: Load, percent: int) -> float:
    """The percentile, in ms."""
    return quantiles(load.times_s, n=100)[percent - 1] * 1000
