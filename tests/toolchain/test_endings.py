"""Why a connection to a tool server ended: in words that help, and show nothing that is not to be seen."""

from __future__ import annotations

import sys

import httpx
import pytest
from mcp.shared.exceptions import McpError
from mcp.types import CONNECTION_CLOSED, ErrorData

from proxy.toolchain.endings import SESSION_TERMINATED, ConnectionLost, ending
from proxy.toolchain.program import Program

ADDRESS = "http://user:s3cr3t@tools.internal:9000/mcp"
REQUEST = httpx.Request("POST", ADDRESS)


def mcp_error(code: int) -> McpError:
    return McpError(ErrorData(code=code, message="s3cr3t"))


def status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(f"{code} for {ADDRESS}", request=REQUEST, response=httpx.Response(code))


@pytest.mark.parametrize(
    ("exc", "why", "not_run"),
    [
        (httpx.ConnectError(ADDRESS), "it cannot be reached; check its url", True),
        (httpx.ConnectTimeout(ADDRESS), "it cannot be reached; check its url", True),
        (httpx.ReadError(ADDRESS), "the connection to it broke off", False),
        (status(401), "it answered with status 401; check its headers", False),
        (status(404), "it answered with status 404; check its url", True),
        (status(400), "it answered with status 400; check its url", True),
        (status(500), "it answered with status 500", False),
        (mcp_error(CONNECTION_CLOSED), "the connection to it broke off", False),
        (mcp_error(SESSION_TERMINATED), "it answered with status 404; check its url", True),
        (mcp_error(-32600), "it refused to begin, with error -32600", True),
        (ConnectionLost("x"), "the connection to it broke off", False),
        (TimeoutError(), "it does not answer", True),
        (RuntimeError("Unsupported protocol version: s3cr3t"), "it speaks a version of the protocol", True),
        (KeyError("s3cr3t"), "it failed (KeyError)", False),
    ],
)
def test_the_reason_is_told_without_addresses(exc: Exception, why: str, not_run: bool) -> None:
    for wrapped in (exc, ExceptionGroup("a", [ExceptionGroup("b", [exc])])):
        lost = ending(wrapped, None)
        if not isinstance(exc, KeyError):
            assert lost.why.startswith(why)
        assert lost.not_run is not_run
        assert "s3cr3t" not in lost.why
        assert "tools.internal" not in lost.why


@pytest.mark.parametrize(
    ("code", "exit_code", "garbage", "why"),
    [
        (None, 3, 0, "its program ended (exit code 3)"),
        (None, -9, 0, "its program ended (signal 9)"),
        (None, None, 0, "its program ended;"),
        (None, 0, 2, "its program ended (exit code 0), and what it writes to standard output is not the protocol's"),
    ],
)
async def test_a_programs_end_is_told_with_what_is_known(
    code: None, exit_code: int | None, garbage: int, why: str
) -> None:
    program = Program("clock", [sys.executable], {}, lambda: None)
    program.exit_code, program.garbage_lines = exit_code, garbage
    lost = ending(mcp_error(CONNECTION_CLOSED), program)
    assert lost.why.startswith(why)
    assert "--log-level debug" in lost.why
    await program.stop()


async def test_a_message_that_was_too_large_is_told() -> None:
    program = Program("clock", [sys.executable], {}, lambda: None)
    program.too_large = True
    assert ending(mcp_error(CONNECTION_CLOSED), program).why == "it sent a message larger than 64 MiB"
    await program.stop()


async def test_a_command_that_cannot_be_run_is_told_without_the_command() -> None:
    program = Program("clock", ["/opt/s3cr3t"], {}, lambda: None)
    lost = ending(FileNotFoundError(2, "No such file or directory", "/opt/s3cr3t"), program)
    assert lost.why == "its command cannot be run: No such file or directory"
    assert lost.not_run
    await program.stop()


async def test_a_program_that_does_not_answer_but_prints_is_told() -> None:
    program = Program("clock", [sys.executable], {}, lambda: None)
    program.garbage_lines = 1
    assert "standard output" in ending(TimeoutError(), program).why
    await program.stop()
