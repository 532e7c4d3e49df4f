"""Two real model servers behind one route, one of them killed and started again under load: whoever could be served by
the other is."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.support.gateway import running_gateway
from tests.support.model_server import ModelServer, running_model_server, tiny_model
from tests.support.reserved_port import reserved_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.real_server, pytest.mark.slow]

CLIENTS = 4
TOKENS = 48
PATIENCE_S = 250.0
QUESTION: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": TOKENS,
    "logit_bias": {"1": -100.0},  # 1 is the end token
}


@dataclass
class Load:
    """`outcomes`: whole, cut (events, then one error), failed. `by` counts the whole ones of each replica, `under_way`
    the streams that have begun at each."""

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    under_way: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def client(self) -> None:
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60) as sdk:
            while True:
                outcome = await self._ask(sdk)
                self.outcomes[outcome] += 1

    async def _ask(self, sdk: openai.AsyncOpenAI) -> str:
        heard, finish = 0, None
        try:
            async with await sdk.chat.completions.create(**QUESTION, stream=True) as stream:
                replica = stream.response.headers["x-penstock-replica"]
                self.under_way[replica] += 1
                try:
                    async for chunk in stream:
                        heard += 1
                        finish = chunk.choices[0].finish_reason or finish
                finally:
                    self.under_way[replica] -= 1
        except openai.APIError as error:
            if heard and finish is None and error.code == "upstream_truncated":
                return "cut"
            self.failures.append(f"{error!r} after {heard} events")
            return "failed"
        if finish != "length":
            self.failures.append(f"ended with {finish} after {heard} events")
            return "failed"
        self.by[replica] += 1
        return "whole"

    async def more_by(self, replica: str, many: int) -> None:
        """Until this one has served so many more."""
        enough = self.by[replica] + many
        while self.by[replica] < enough:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def under_load(url: str) -> AsyncIterator[Load]:
    load = Load(url)
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    try:
        yield load
    finally:
        for client in clients:
            client.cancel()
        ends = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@pytest.mark.timeout(2 * PATIENCE_S)
async def test_what_the_other_model_server_can_answer_it_does(model_server: ModelServer, tmp_path: Path) -> None:
    with ExitStack() as servers:
        port = servers.enter_context(reserved_port())

        async def started(log: str) -> ModelServer:
            return await asyncio.to_thread(
                servers.enter_context, running_model_server(tiny_model(), tmp_path / log, port)
            )

        async with asyncio.timeout(PATIENCE_S):
            mortal = await started("first-life")
            routes = (
                f"discover: false\nroutes: {{tiny: {{model: {json.dumps(model_server.model)}, "
                f"replicas: ['{model_server.url}', '{mortal.url}'], "
                "health: {every: 500ms, timeout: 30s, fall: 2, rise: 1}}}\n"
            )
            async with running_gateway(routes, tmp_path) as gateway, under_load(gateway.url) as load:
                await load.more_by("0", 5)
                await load.more_by("1", 5)
                while load.under_way["1"] == 0:
                    await asyncio.sleep(0)
                mortal.kill()
                await load.more_by("0", 20)
                await started("second-life")
                await load.more_by("1", 5)
    print(load.outcomes, load.by)
    assert load.failures == []
    assert 0 < load.outcomes["cut"] <= CLIENTS  # those that the kill met in the middle
