"""The example of a route with tools as its reader runs it: the gateway with its file, and the script that watches."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from proxy.config.loader import load
from proxy.toolchain.catalogue import Place
from proxy.toolchain.servers import ToolServers
from tests.support.gateway import running_file, running_gateway
from tests.support.tool_servers import program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "toolchain"
PROMPT = 'Use time_in for "Europe/Berlin", then days_between "2026-01-01" and "2026-12-24".'
DONE_WITHIN_S = 30.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("example")
    assert Path.cwd() == ROOT  # where its reader is told to be
    async with running_file(EXAMPLE / "routes.yaml", folder, PYTHON=sys.executable) as gateway:
        yield gateway


async def watched(*arguments: str) -> tuple[int, str, str]:
    """The script's exit code, what it printed and what it complained about."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLE / "watch.py"), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    async with asyncio.timeout(DONE_WITHIN_S):
        said, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def test_the_model_is_given_what_the_tools_say(gateway: RunningGateway) -> None:
    code, shown, complained = await watched(PROMPT, gateway.url)
    assert (code, complained) == (0, "")
    found = re.search(r'time_in\(\{"zone": "Europe/Berlin"\}\) = (\d{4}-\S+ \S+)  \[[\d.]+ ms\]', shown)
    assert found is not None
    assert re.search(r"days_between\(.*\) = -?\d+  \[", shown)
    assert "--- round 1" in shown.splitlines()
    assert found[1] in shown.rpartition("]\n---\n")[2]  # in the prose that comes after the tools
    assert shown.endswith("--- done \n")


async def test_a_zone_that_is_none_is_a_failed_call(gateway: RunningGateway) -> None:
    code, shown, _ = await watched('Use time_in for "Atlantis".', gateway.url)
    assert code == 0
    assert re.search(r"time_in\(.*\) = failed: .*they are named like Europe/Berlin", shown)
    assert shown.endswith("--- done \n")


async def test_a_gateway_that_is_not_there_is_told(gateway: RunningGateway) -> None:
    code, _, complained = await watched(PROMPT, "http://127.0.0.1:9")
    assert code == 1
    assert complained.endswith("is the gateway running?\n")


async def test_a_refusal_is_told(tmp_path: Path) -> None:
    async with running_gateway("routes: {echo: demo://}", tmp_path) as other:
        code, _, complained = await watched(PROMPT, other.url)
    assert (code, complained) == (1, "400: Unknown model: calendar. Available models: ['echo']\n")


async def test_its_port_is_a_variable() -> None:
    assert load(EXAMPLE / "routes.yaml", {"PORT": "1234"}).server.port == 1234
    assert load(EXAMPLE / "routes.yaml", {}).server.port == 8080


async def test_the_tool_server_of_the_documentation_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "stream-routes.md").read_text(encoding="utf-8")
    file = tmp_path / "clock_server.py"
    file.write_text(text.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    servers = ToolServers({"clock": program(sys.executable, file)})
    try:
        catalogue = await servers.offer(["clock"])
        outcome = await servers.call(Place("clock", "now"), {"zone": "UTC"})
        wrong = await servers.call(Place("clock", "now"), {"zone": "Atlantis"})
    finally:
        await servers.close()
    assert catalogue.names == ("now",)
    assert re.fullmatch(r"\d\d:\d\d", outcome.text)
    assert (outcome.is_error, wrong.is_error) == (False, True)
