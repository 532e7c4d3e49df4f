"""A tool server's life: started when it is first needed, again when it died, and left alone for a while if it keeps
dying."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.toolchain.results import Outcome, failed
from proxy.toolchain.server import ToolServer, ToolServerDown
from tests.support.memory_line import Clock
from tests.support.tool_servers import at, http_server, noted, program, quick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.config.model import Tool


@asynccontextmanager
async def server(tool: Tool) -> AsyncIterator[ToolServer]:
    opened = ToolServer("bench", tool)
    try:
        yield opened
    finally:
        await opened.close()


def starts(notes: Path) -> int:
    return notes.read_text().splitlines().count("start") if notes.exists() else 0


async def test_it_starts_once_when_it_is_first_needed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with server(quick(f"notes={notes}")) as bench:
        assert starts(notes) == 0
        listed = await asyncio.gather(*(bench.tools() for _ in range(5)))
        assert all(tools == listed[0] for tools in listed)
        assert await bench.call("echo", {"text": "x"}) == Outcome("x")
        assert starts(notes) == 1


async def test_a_client_that_leaves_during_the_start_does_not_stop_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with server(quick(f"notes={notes}")) as bench:
        impatient = asyncio.create_task(bench.tools())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert len(await bench.tools()) == 5
        assert starts(notes) == 1


async def test_a_death_during_a_call_is_an_error_result_and_the_next_call_finds_a_new_server(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with server(quick(f"once={tmp_path / 'died'}", f"notes={notes}")) as bench:
        outcome = await bench.call("echo", {"text": "first"})
        assert outcome.is_error
        assert outcome.text.startswith('tool server "bench": its program ended (exit code 9)')
        assert await bench.call("echo", {"text": "second"}) == Outcome("second")
    assert notes.read_text().splitlines() == ["start", "echo first", "start", "echo second", "end"]


async def test_a_call_to_a_server_that_died_meanwhile_is_run_once_by_a_new_one(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with http_server() as http, server(at(http.url)) as bench:
        assert await bench.call("add", {"a": 1, "b": 2}) == Outcome("3")
        await http.kill()
        await http.restart()
        assert await bench.call("add", {"a": 1, "b": 2}) == Outcome("3")
    assert not notes.exists()


async def test_a_server_that_keeps_dying_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    clock = Clock(monkeypatch)
    async with server(quick("dies=4", f"notes={notes}")) as bench:
        for expected in (1, 2, 2):
            with pytest.raises(ToolServerDown, match=r'tool server "bench": its program ended \(exit code 4\)'):
                await bench.tools()
            assert starts(notes) == expected
        with pytest.raises(ToolServerDown, match="it is tried again in 1 s") as down:
            await bench.tools()
        assert down.value.retry_after_s == 1
        await clock.advance(1.0)
        with pytest.raises(ToolServerDown, match="it is tried again in 2 s"):
            await bench.tools()
        assert starts(notes) == 3


async def test_a_call_to_a_server_that_does_not_start_is_an_error_result() -> None:
    async with server(program("/nowhere/at/all")) as bench:
        outcome = await bench.call("echo", {})
    assert outcome.is_error
    assert outcome.text.startswith('tool server "bench": its command cannot be run')
    assert "/nowhere" not in outcome.text


async def test_its_end_is_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "penstock")
    async with server(quick("dies=4", KEY="s3cr3t-key")) as bench:
        with pytest.raises(ToolServerDown) as down:
            await bench.tools()
    assert 'tool server "bench": its program ended (exit code 4)' in caplog.text
    assert "my key is ***" in caplog.text
    assert "s3cr3t-key" not in caplog.text + str(down.value)


async def test_an_answered_call_makes_the_next_start_immediate(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with server(quick(f"once={tmp_path / 'died'}", f"notes={notes}")) as bench:
        await bench.call("echo", {"text": "dies"})
        for number in range(3):
            assert await bench.call("echo", {"text": str(number)}) == Outcome(str(number))
        assert starts(notes) == 2


async def test_a_close_ends_the_program_and_its_calls(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with server(quick(f"notes={notes}")) as bench:
        held = asyncio.create_task(bench.call("hold", {}))
        await noted(notes, "hold")
        await bench.close()
        assert await held == failed('tool server "bench": the gateway is shutting down; the call was given up')
        assert (await bench.call("echo", {})).is_error
    assert starts(notes) == 1
