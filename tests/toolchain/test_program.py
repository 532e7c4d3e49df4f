"""A tool server that is a program: started, spoken to, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage

from proxy.toolchain import program as program_file
from proxy.toolchain.program import Program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@asynccontextmanager
async def running(code: str, **env: str) -> AsyncIterator[tuple[Program, asyncio.Event]]:
    """A program of this Python code, and an event that is set when it has ended."""
    ended = asyncio.Event()
    program = Program("clock", [sys.executable, "-S", "-c", code], env, ended.set)
    await program.start()
    try:
        yield program, ended
    finally:
        await program.stop()


def message(text: str) -> SessionMessage:
    return SessionMessage(JSONRPCMessage.model_validate_json(text))


PING = '{"jsonrpc":"2.0","id":1,"method":"ping"}'


async def test_messages_go_in_and_come_out() -> None:
    async with running(ECHO) as (program, _):
        for _ in range(3):
            await program.outgoing.send(message(PING))
            heard = await program.incoming.receive()
            assert isinstance(heard, SessionMessage)
            assert heard == message(PING)


async def test_arguments_that_are_null_arrive() -> None:
    call = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":null}}}'
    async with running(ECHO) as (program, _):
        await program.outgoing.send(message(call))
        assert await program.incoming.receive() == message(call)


async def test_a_large_message_arrives_whole() -> None:
    code = (
        "import json, sys\n"
        "print(json.dumps({'jsonrpc': '2.0', 'id': 1, 'method': 'x', 'params': {'x': 'x' * 10_000_000}}), flush=True)\n"
        "sys.stdin.read()"
    )
    async with running(code) as (program, _):
        heard = await program.incoming.receive()
        assert isinstance(heard, SessionMessage)
        assert len(heard.message.model_dump_json()) > 10_000_000


async def test_a_message_without_an_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_file, "LINE_BYTES", 1 << 16)
    monkeypatch.setattr(program_file, "EXIT_WITHIN_S", 0.1)
    async with running("import sys\nwhile True: sys.stdout.write('x' * 4096)") as (program, ended):
        await ended.wait()
        assert program.too_large
        with pytest.raises(anyio.EndOfStream):
            await program.incoming.receive()


async def test_garbage_is_skipped_counted_and_not_quoted(caplog: pytest.LogCaptureFixture) -> None:
    code = f"print('my key is abcd')\nprint()\nprint('{{')\nprint({PING!r}, flush=True)\nimport sys; sys.stdin.read()"
    async with running(code) as (program, _):
        assert await program.incoming.receive() == message(PING)
    assert program.garbage_lines == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert '"clock"' in warnings[0]
    assert "abcd" not in caplog.text


@pytest.mark.parametrize(
    ("code", "exit_code"), [("raise SystemExit(3)", 3), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9)]
)
async def test_an_end_of_its_own_is_noticed_with_its_exit_code(code: str, exit_code: int) -> None:
    async with running(code) as (program, ended):
        await ended.wait()
        with pytest.raises(anyio.EndOfStream):
            await program.incoming.receive()
    assert program.ended
    assert program.exit_code == exit_code


async def test_an_end_that_was_asked_for_has_no_exit_code() -> None:
    async with running(ECHO) as (program, _):
        pass
    assert program.exit_code is None


async def test_a_stubborn_program_and_its_children_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_file, "EXIT_WITHIN_S", 0.1)
    code = (
        "import os, signal, sys, time\n"
        "child = os.fork()\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'if child: print(\'{"jsonrpc":"2.0","id":%d,"method":"ping"}\' % child, flush=True)\n'
        "while True: time.sleep(1)"
    )
    async with running(code) as (program, _):
        heard = await program.incoming.receive()
        assert isinstance(heard, SessionMessage)
        child = int(heard.message.model_dump()["id"])
        os.kill(child, 0)
    with pytest.raises(ProcessLookupError):
        await _gone(child)


async def _gone(pid: int) -> None:
    """Raises ProcessLookupError once there is no such process, or only a dead one that nobody has buried yet."""
    async with asyncio.timeout(5):
        while True:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                raise ProcessLookupError
            await asyncio.sleep(0.01)


async def test_a_command_that_is_not_there_is_an_os_error() -> None:
    program = Program("clock", ["/nowhere/at/all"], {}, lambda: None)
    with pytest.raises(FileNotFoundError):
        await program.start()
    await program.stop()


async def test_its_environment_is_small_and_has_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-tools")
    code = (
        "import os, json, sys\n"
        "print(json.dumps({'jsonrpc': '2.0', 'id': 1, 'method': 'x', 'params': dict(os.environ)}), flush=True)\n"
        "sys.stdin.read()"
    )
    async with running(code, TZ="UTC") as (program, _):
        heard = await program.incoming.receive()
        assert isinstance(heard, SessionMessage)
        seen = heard.message.model_dump()["params"]
    assert seen["TZ"] == "UTC"
    assert "PATH" in seen
    assert "OPENAI_API_KEY" not in seen


async def test_its_log_is_ours_at_debug_level_without_its_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "penstock")
    code = "import sys, os\nprint('key', os.environ['KEY'], 'x' * 5000, file=sys.stderr)"
    async with running(code, KEY="s3cr3t") as (_, ended):
        await ended.wait()
    (line,) = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert line.startswith('tool server "clock": key *** xxx')
    assert len(line) < 600


async def test_without_debug_level_its_log_is_only_drained(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock")
    code = "import sys\nfor _ in range(5000): print('x' * 100, file=sys.stderr)\n" + ECHO
    async with running(code) as (program, _):
        await program.outgoing.send(message(PING))
        assert await program.incoming.receive() == message(PING)
    assert not caplog.records


async def test_a_program_that_dies_while_it_is_spoken_to_is_noticed() -> None:
    async with running("import sys\nsys.stdin.read(1)") as (program, ended):
        assert program._process is not None
        os.kill(program._process.pid, signal.SIGKILL)
        await program.outgoing.send(message(PING))
        await ended.wait()
    assert program.exit_code == -9
