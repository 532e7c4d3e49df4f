"""What a start loads: as much as its configuration asks for, and no more. Counted in modules, not in seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway import running_file
from tests.support.raw_client import ask, post
from tests.support.upstream import answer, answering, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

WHERE_ASKED_FOR = {"proxy.upstream.demo", "proxy.workers", "proxy.supervisor", "proxy.worker_metrics"}
NEVER = {"proxy.config.schema", "proxy.upstream.probe", "mcp", "multiprocessing", "unittest"}
CHAT = post("/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')


def loaded(told: str) -> set[str]:
    """The modules that Python told of as it imported them."""
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", told, re.MULTILINE))


async def loaded_by_a_start(routes_yaml: str, tmp_path: Path, *args: str) -> set[str]:
    """By a gateway that has given the first answer of a model."""
    file = tmp_path / "routes.yaml"
    file.write_text(routes_yaml, encoding="utf-8")
    async with running_file(file, tmp_path, *args, PYTHONPROFILEIMPORTTIME="1") as gateway:
        assert (await ask(int(gateway.url.rpartition(":")[2]), CHAT)).status == 200
        return loaded(gateway.log())


async def test_a_plain_start_loads_nothing_that_its_configuration_does_not_ask_for(tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as upstream:
        modules = await loaded_by_a_start(f"routes: {{m: '{upstream.url}'}}\n", tmp_path)
    assert modules >= {"proxy.app", "proxy.config.document", "aiohttp.web", "uvloop"}
    assert not modules & (WHERE_ASKED_FOR | NEVER)


async def test_a_demo_and_several_workers_load_what_they_need(tmp_path: Path) -> None:
    demo = "routes: {m: 'demo://?tokens=1&interval=0ms&first=0ms'}\n"
    modules = await loaded_by_a_start(demo, tmp_path, "--workers", "2")
    assert modules >= WHERE_ASKED_FOR
    assert not modules & NEVER


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_a_question_to_the_command_line_loads_no_server(option: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "proxy", option]
    modules = loaded(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
    assert "argparse" in modules
    assert not modules & {"proxy.app", "proxy.config.loader", "aiohttp", "asyncio", "pydantic", "yaml"}


def test_what_was_loaded_is_no_garbage_and_what_comes_after_it_is_looked_at() -> None:
    code = "import gc, proxy.__main__ as command; command.load_server(); print(gc.isenabled(), gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    enabled, frozen = done.stdout.split()
    assert enabled == "True"
    assert int(frozen) > 10_000
