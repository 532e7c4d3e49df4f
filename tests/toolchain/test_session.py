"""One connection to a tool server, over stdio and over HTTP, with real servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.toolchain.endings import ConnectionLost
from proxy.toolchain.results import RESULT_CHARACTERS, Outcome
from proxy.toolchain.session import Session
from tests.support.tool_servers import at, everything, http_server, noted, official, quick
from tests.support.upstream import answer, answering, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.config.model import Tool

TIMEOUT_S = 20.0


@asynccontextmanager
async def session(tool: Tool, *, start_within_s: float = 20.0) -> AsyncIterator[Session]:
    opened = Session("bench", tool.mcp, start_within_s=start_within_s, on_lost=lambda lost: None)
    try:
        yield opened
    finally:
        await opened.close()
        assert opened.over


async def call(opened: Session, tool: str, **arguments: object) -> Outcome:
    return await opened.call(tool, arguments, TIMEOUT_S)


async def names(opened: Session) -> list[str]:
    return [tool.name for tool in await opened.tools()]


async def works_as_it_should(opened: Session) -> None:
    """What a server made with the official library does, whatever it is spoken to over."""
    listed = {tool.name: tool for tool in await opened.tools()}
    assert listed["add"].description == "Add two numbers."
    assert listed["add"].schema["required"] == ["a", "b"]
    assert await call(opened, "add", a=1, b=2) == Outcome("3")
    assert await call(opened, "given", value=None) == Outcome("None")
    assert await call(opened, "given") == Outcome("'nothing'")
    assert await call(opened, "structured") == Outcome('{"degrees": 21}')
    assert (await call(opened, "picture")).text == "a picture:\n[image of type image/png, 30 bytes, not shown here]"
    failure = await call(opened, "fail", why="too early")
    assert failure.is_error
    assert "too early" in failure.text
    unknown = await call(opened, "nothing_of_the_kind")
    assert unknown.is_error
    assert "nothing_of_the_kind" in unknown.text
    assert await call(opened, "learn") == Outcome("done")
    assert "learned" in await names(opened)
    assert await call(opened, "learned") == Outcome("new")


async def test_a_server_over_stdio_works() -> None:
    async with session(official()) as opened:
        await works_as_it_should(opened)


async def test_a_server_over_http_works() -> None:
    async with http_server() as server, session(at(server.url)) as opened:
        await works_as_it_should(opened)


async def test_the_reference_server_works() -> None:
    async with session(everything()) as opened:
        assert {"echo", "get-sum", "get-tiny-image"} <= set(await names(opened))
        assert await call(opened, "echo", message="hi") == Outcome("Echo: hi")
        assert await call(opened, "get-sum", a=1, b=2) == Outcome("The sum of 1 and 2 is 3.")
        assert "[image of type image/png" in (await call(opened, "get-tiny-image")).text
        assert (await call(opened, "get-sum", a="x", b=2)).is_error
        assert "temperature" in (await call(opened, "get-structured-content", location="Chicago")).text


async def test_all_pages_of_tools_are_listed() -> None:
    async with session(quick()) as opened:
        assert await names(opened) == ["echo", "fail", "hold", "refuse", "big"]


async def test_a_change_of_the_tools_is_followed() -> None:
    async with session(quick()) as opened:
        for number in range(5):
            await call(opened, "learn", text=f"new{number}")
            assert (await names(opened))[-1] == f"new{number}"


async def test_a_protocol_error_is_an_outcome() -> None:
    async with session(quick()) as opened:
        assert await call(opened, "refuse", text="not today") == Outcome("refused: not today", is_error=True)


async def test_calls_run_side_by_side() -> None:
    async with session(quick()) as opened:
        held = [asyncio.create_task(call(opened, "hold")) for _ in range(3)]
        assert await call(opened, "echo", text="through") == Outcome("through")
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_a_result_of_ten_megabytes_is_cut() -> None:
    async with session(official()) as opened:
        outcome = await call(opened, "big", characters=10_000_000)
    assert not outcome.is_error
    assert len(outcome.text) < RESULT_CHARACTERS + 100
    assert "10000000" in outcome.text


@pytest.mark.parametrize("over", ["stdio", "http"])
async def test_a_call_that_nobody_waits_for_is_cancelled_at_the_server(
    over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))
    async with http_server() as server:
        async with session(at(server.url) if over == "http" else official(NOTES=str(notes))) as opened:
            waiting = asyncio.create_task(call(opened, "wait"))
            await noted(notes, "waiting")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await noted(notes, "cancelled")
            assert await call(opened, "echo", text="still here") == Outcome("still here")


async def test_a_call_that_takes_too_long_is_an_outcome_and_cancelled(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with session(quick(f"notes={notes}")) as opened:
        await opened.tools()
        outcome = await opened.call("hold", {}, 0.05)
        assert outcome == Outcome('tool server "bench" did not answer within 0.05 s', is_error=True)
        await noted(notes, "cancelled")
        assert await call(opened, "echo", text="still here") == Outcome("still here")


async def test_a_death_during_a_call_is_told_with_its_cause(tmp_path: Path) -> None:
    async with session(quick(f"once={tmp_path / 'died'}")) as opened:
        await opened.tools()
        with pytest.raises(ConnectionLost) as lost:
            await call(opened, "echo", text="x")
        assert lost.value.why.startswith("its program ended (exit code 9)")
        assert not lost.value.not_run
        assert opened.over
        with pytest.raises(ConnectionLost) as later:
            await call(opened, "echo", text="x")
        assert later.value.not_run


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["dies=4"], "its program ended (exit code 4)"),
        (["deaf"], "it does not answer"),
    ],
)
async def test_a_server_that_never_begins_is_told(words: list[str], why: str) -> None:
    async with session(quick(*words), start_within_s=20.0 if words == ["dies=4"] else 0.2) as opened:
        with pytest.raises(ConnectionLost) as lost:
            await opened.tools()
    assert lost.value.why.startswith(why)
    assert lost.value.not_run


async def test_garbage_between_messages_changes_nothing() -> None:
    async with session(quick("garbage")) as opened:
        assert len(await opened.tools()) == 5
        assert await call(opened, "echo", text="x") == Outcome("x")


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (401, "it answered with status 401; check its headers"),
        (404, "it answered with status 404; check its url"),
        (500, "it answered with status 500"),
    ],
)
async def test_an_address_that_refuses_is_told(status: int, why: str) -> None:
    async with scripted_upstream(answering(answer(status, b"{}"))) as there:
        async with session(at(f"{there.url}/mcp", Authorization="Bearer s3cr3t-key")) as opened:
            with pytest.raises(ConnectionLost, match=why):
                await opened.tools()
        assert there.requests[0].header("authorization") == "Bearer s3cr3t-key"


async def test_an_address_that_redirects_elsewhere_gets_no_headers_there() -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as elsewhere:
        location = f"Location: {elsewhere.url}/mcp".encode()
        async with scripted_upstream(answering(answer(307, b"", location))) as there:
            async with session(at(f"{there.url}/mcp", Authorization="Bearer s3cr3t-key")) as opened:
                with pytest.raises(ConnectionLost):
                    await opened.tools()
        assert elsewhere.connections == 0


async def test_a_server_that_forgot_the_session_did_not_run_the_call() -> None:
    async with http_server() as server, session(at(server.url)) as opened:
        await opened.tools()
        await server.kill()
        await server.restart()
        with pytest.raises(ConnectionLost) as lost:
            await call(opened, "add", a=1, b=2)
        assert lost.value.not_run


async def test_a_close_ends_what_is_under_way(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with session(quick(f"notes={notes}")) as opened:
        held = asyncio.create_task(call(opened, "hold"))
        await noted(notes, "hold")
        await opened.close()
        with pytest.raises(ConnectionLost):
            await held


async def test_a_close_during_the_start_ends_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with session(quick("deaf", f"notes={notes}")) as opened:
        waiting = asyncio.create_task(opened.tools())
        await noted(notes, "start")
        await opened.close()
        with pytest.raises(ConnectionLost):
            await waiting
