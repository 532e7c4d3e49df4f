"""The example of a route with tools: its file, its tool server and the built-in model, through the whole loop."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.toolchain.watch import show
from proxy.config.loader import load
from proxy.relay import Relay
from proxy.routing.table import build_table
from proxy.streams.stages import StageStream
from proxy.toolchain.run import Request, ToolchainRun
from proxy.toolchain.servers import ToolServers
from proxy.upstream.dispatch import Dispatch
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard
from tests.support.tool_rounds import exchanges_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "toolchain" / "routes.yaml"
PROMPT = 'Use time_in for "Europe/Berlin", then days_between "2026-01-01" and "2026-12-24".'
Told = list[tuple[str, dict[str, Any]]]


@asynccontextmanager
async def running(prompt: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Told]:
    """All events of one prompt to the example's route."""
    monkeypatch.chdir(ROOT)
    config = load(EXAMPLE, {"PYTHON": sys.executable, "PORT": "0"})
    settings = config.routes["calendar"]
    servers, pool = ToolServers.of(config), Pool()
    relay = Relay(build_table(config), Dispatch(pool, max_event_bytes=1 << 24, on_malformed=lambda _: None))
    base = {"model": "calendar", "messages": [{"role": "user", "content": prompt}], "stream": True}
    limits = settings.toolchain
    request = Request(base, {}, max_rounds=limits.max_rounds, parallel=limits.parallel)
    stage = StageStream("example")
    try:
        run = ToolchainRun(request, await servers.offer(settings.tools), servers, exchanges_of(relay), stage)
        await run.begin()
        heard = Heard(stage.stream)
        async with asyncio.timeout(30):
            await heard.over.wait()
        await run.close()
        yield [(event.type.decode(), json.loads(event.data)) for batch in heard.batches for event in batch]
    finally:
        await servers.close()
        await pool.close()


async def test_the_model_is_given_what_the_tools_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(PROMPT, monkeypatch) as told:
        kinds = list(dict.fromkeys(kind for kind, _ in told))
        (summary,) = [data["tool_summary"] for kind, data in told if kind == "tool_summary"]
        calls = {call["name"]: call for call in summary["calls"]}
        prose = "".join(
            choice["delta"].get("content") or ""
            for kind, data in told
            if kind == "tool_completion_chunk"
            for choice in data["tool_results"]["choices"]
        )
    assert kinds == ["chat_completion_chunk", "tool_summary", "tool_completion_chunk", "done"]
    assert calls["time_in"]["arguments"] == {"zone": "Europe/Berlin"}
    assert datetime.fromisoformat(calls["time_in"]["result"]).tzinfo is not None
    assert not calls["days_between"]["is_error"]
    assert calls["time_in"]["result"] in prose
    for kind, data in told:
        show(kind, data)
    shown = capsys.readouterr().out
    assert 'time_in({"zone": "Europe/Berlin"}) = 20' in shown
    assert shown.endswith("--- done \n")


async def test_a_zone_that_is_none_is_a_failed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running('Use time_in for "Atlantis".', monkeypatch) as told:
        (summary,) = [data["tool_summary"] for kind, data in told if kind == "tool_summary"]
    (call,) = summary["calls"]
    assert call["is_error"]
    assert "Europe/Berlin" in call["result"]
    assert told[-1][0] == "done"
