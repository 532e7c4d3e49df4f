"""All tool servers of a configuration: what a route is offered, and what happens where one is out."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.model import Config
from proxy.errors import Unavailable
from proxy.toolchain.catalogue import Place
from proxy.toolchain.results import Outcome
from proxy.toolchain.servers import LibraryMissing, ToolServers, require_library
from tests.support.tool_servers import at, noted, program, quick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

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


def test_what_a_configuration_lacks_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"t": {"mcp": {"command": ["x"]}}}
    unused = Config.model_validate({"tools": tools, "routes": {"a": {}}})
    used = Config.model_validate({"tools": tools, "routes": {"a": {"tools": ["t.one"]}}})
    require_library(used)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_library(unused)
    with pytest.raises(LibraryMissing, match=r'pip install "penstock\[mcp\]"'):
        require_library(used)


# ---- another configuration ----


def config(**tools: Tool) -> Config:
    """All of them are named by one route."""
    routes = {"a": {"replicas": ["demo://"], "tools": list(tools)}}
    return Config.model_validate({"tools": tools, "routes": routes})


ECHO: dict[str, object] = {"text": "x"}


async def test_a_server_that_stays_the_same_goes_on(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    same = quick(f"notes={notes}")
    first = ToolServers.of(config(same=same))
    assert await first.call(Place("same", "echo"), ECHO) == Outcome("x")
    second = first.succeed(config(same=same, more=quick()))
    assert await second.call(Place("same", "echo"), ECHO) == Outcome("x")
    assert await second.call(Place("more", "echo"), ECHO) == Outcome("x")
    assert second._servers["same"] is first._servers["same"]
    await second.close()


async def test_servers_that_go_or_change_end_when_the_last_run_that_holds_them_does() -> None:
    first = ToolServers.of(config(gone=quick(), changed=quick()))
    for name in ("gone", "changed"):
        await first.call(Place(name, "echo"), ECHO)
    held = first.hold()
    second = first.succeed(config(changed=quick(timeout="19s")))
    gone, changed, new = held._servers["gone"], held._servers["changed"], second._servers["changed"]
    assert changed is not new
    assert await held.call(Place("gone", "echo"), ECHO) == Outcome("x")
    assert (gone._closed, changed._closed) == (False, False)
    held.release()
    async with asyncio.timeout(10):
        while not (gone._closed and changed._closed):
            await asyncio.sleep(0.01)
    assert await second.call(Place("changed", "echo"), ECHO) == Outcome("x")
    await second.close()
    assert new._closed


async def test_a_server_that_comes_back_unchanged_while_it_is_held_by_nobody_is_a_new_one() -> None:
    first = ToolServers.of(config(a=quick()))
    second = first.succeed(config())
    third = second.succeed(config(a=quick()))
    assert await third.call(Place("a", "echo"), ECHO) == Outcome("x")
    assert third._servers["a"] is not first._servers["a"]
    await third.close()
    assert first._servers["a"]._closed


async def test_closing_the_last_ones_closes_those_that_are_held_too(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    first = ToolServers.of(config(a=quick(f"notes={notes}")))
    held = first.hold()
    calling = asyncio.create_task(held.call(Place("a", "hold"), {}))
    await noted(notes, "hold")
    second = first.succeed(config()).succeed(config())
    await second.close()
    assert held._servers["a"]._closed
    assert (await calling).is_error
    held.release()


async def test_a_server_that_is_no_longer_there_offers_nothing() -> None:
    """A request may have found its route just before the servers changed."""
    async with servers(a=quick()) as one:
        assert (await one.offer(["a.echo", "gone"])).names == ("echo",)
        assert not await one.offer(["gone"])
