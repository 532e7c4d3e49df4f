"""All tool servers of a configuration: what a route is offered, and what happens where one is out."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.model import Config
from proxy.errors import Unavailable
from proxy.toolchain.catalogue import Place
from proxy.toolchain.results import Outcome
from proxy.toolchain.servers import LibraryMissing, ToolServers, require_library
from tests.support.tool_servers import at, official, program, quick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.config.model import Tool

QUICK = ("echo", "fail", "hold", "refuse", "big")


@asynccontextmanager
async def servers(**tools: Tool) -> AsyncIterator[ToolServers]:
    opened = ToolServers(tools)
    try:
        yield opened
    finally:
        await opened.close()


async def test_a_route_is_offered_the_tools_it_names() -> None:
    async with servers(a=quick(), b=quick()) as both:
        assert (await both.offer(["a"])).names == QUICK
        assert (await both.offer(["a.echo", "b.big"])).names == ("echo", "big")
        assert (await both.offer(["a.echo", "b.echo", "b.big"])).names == ("a__echo", "b__echo", "big")
        assert await both.call(Place("b", "echo"), {"text": "x"}) == Outcome("x")


async def test_a_route_without_tools_starts_nothing() -> None:
    async with servers(a=program("/nowhere/at/all")) as one:
        assert not await one.offer([])


async def test_a_tool_that_is_not_there_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with servers(a=quick()) as one:
        assert (await one.offer(["a.echo", "a.sing"])).names == ("echo",)
        assert not await one.offer(["a.sing"])
    assert '"a.sing"' in caplog.text


async def test_a_server_that_is_out_does_not_take_the_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async with servers(a=quick(), broken=quick("dies=4")) as two:
        assert (await two.offer(["broken", "a"])).names == QUICK
    assert 'tool server "broken": its program ended (exit code 4)' in caplog.text


async def test_where_every_server_is_out_the_request_is_told_so() -> None:
    async with servers(broken=quick("dies=4"), gone=at("http://127.0.0.1:9/mcp", Key="s3cr3t-key")) as two:
        with pytest.raises(Unavailable) as raised:
            await two.offer(["broken", "gone.find"])
    error = raised.value
    assert (error.status, error.code, error.retry_after_s) == (503, "tools_unavailable", 1)
    assert 'tool server "broken": its program ended (exit code 4)' in error.message
    assert 'tool server "gone": it cannot be reached; check its url' in error.message
    assert "127.0.0.1" not in error.message
    assert "s3cr3t-key" not in error.message


async def test_only_servers_that_a_route_names_are_kept() -> None:
    tools: dict[str, Any] = {name: {"mcp": {"command": ["x"]}} for name in ("used", "half.used", "unused")}
    routes = {"a": {"replicas": ["demo://"], "tools": ["used"]}, "b": {"replicas": [], "tools": ["half.used"]}}
    kept = ToolServers.of(Config.model_validate({"tools": tools, "routes": routes}))
    assert set(kept._settings) == {"used", "half.used"}
    await kept.close()


async def test_the_library_is_only_asked_for_where_a_route_has_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mcp" else find(name))
    tools = {"clock": {"mcp": {"command": ["x"]}}}
    ToolServers.of(Config.model_validate({"tools": tools, "routes": {"a": "demo://"}}))
    with pytest.raises(LibraryMissing, match=r'pip install "penstock\[mcp\]"'):
        ToolServers.of(
            Config.model_validate({"tools": tools, "routes": {"a": {"replicas": ["demo://"], "tools": ["clock"]}}})
        )


def test_the_room_is_entered_without_the_library() -> None:
    """In a process of its own: here it may be loaded already."""
    rooms = "proxy.toolchain.servers, proxy.toolchain.run, proxy.toolchain.collected"
    code = f"import sys, {rooms}; print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_arguments_and_results_are_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with servers(a=official(), b=quick("garbage")) as both:
        await both.offer(["a", "b"])
        for place in (Place("a", "echo"), Place("b", "echo")):
            await both.call(place, {"text": "canary-in-a-call"})
        await both.call(Place("a", "fail"), {"why": "canary-in-a-call"})
        await both.call(Place("a", "add"), {"a": "canary-in-a-call", "b": 1})
    # What a server itself writes to its standard error is its own.
    ours = [record.getMessage() for record in caplog.records if not record.getMessage().startswith('tool server "a"')]
    assert not [line for line in ours if "canary-in-a-call" in line]


def test_what_a_configuration_lacks_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"t": {"mcp": {"command": ["x"]}}}
    unused = Config.model_validate({"tools": tools, "routes": {"a": {}}})
    used = Config.model_validate({"tools": tools, "routes": {"a": {"tools": ["t.one"]}}})
    require_library(used)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_library(unused)
    with pytest.raises(LibraryMissing, match=r'pip install "penstock\[mcp\]"'):
        require_library(used)
