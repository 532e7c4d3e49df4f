"""Why a connection to a tool server ended or never began, in words for an operator: they show no address, no key and
nothing that a server said."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from mcp import types
from mcp.shared.exceptions import McpError

from proxy.toolchain.program import LINE_BYTES, Program

SESSION_TERMINATED = 32600
"""The library's code for a server's 404: it has forgotten the session, and did not look at the message."""
_UNKNOWN_SESSION = (400, 404)


class ConnectionLost(Exception):
    """The connection ended, or never began: a sentence why. `not_run`: what was asked for was certainly not done."""

    def __init__(self, why: str, *, not_run: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.not_run = not_run


CLOSED = ConnectionLost("the gateway is shutting down")


def ending(exc: BaseException, program: Program | None) -> ConnectionLost:
    """What `exc`, which ended a connection (to `program`, where it is one), means."""
    for leaf in _leaves(exc):
        match leaf:
            case ConnectionLost():
                return _ended(program)
            case McpError() if leaf.error.code == types.CONNECTION_CLOSED:
                return _ended(program)
            case McpError() if leaf.error.code == SESSION_TERMINATED:
                return _status(404)
            case McpError():
                return ConnectionLost(f"it refused to begin, with error {leaf.error.code}", not_run=True)
            case TimeoutError():
                return ConnectionLost(f"it does not answer{_garbage(program)}", not_run=True)
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return ConnectionLost("it cannot be reached; check its url", not_run=True)
            case httpx.HTTPStatusError():
                return _status(leaf.response.status_code)
            case httpx.HTTPError():
                return ConnectionLost("the connection to it broke off")
            case OSError() if program is not None:
                return ConnectionLost(f"its command cannot be run: {leaf.strerror or 'no reason given'}", not_run=True)
            case RuntimeError():
                return ConnectionLost("it speaks a version of the protocol that is not known here", not_run=True)
    return ConnectionLost(f"it failed ({type(exc).__name__})")


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions within groups."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def _ended(program: Program | None) -> ConnectionLost:
    if program is None:
        return ConnectionLost("the connection to it broke off")
    if program.too_large:
        return ConnectionLost(f"it sent a message larger than {LINE_BYTES >> 20} MiB")
    code = program.exit_code
    how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
    return ConnectionLost(f"its program ended{how}{_garbage(program)}; --log-level debug shows what it logs")


def _garbage(program: Program | None) -> str:
    if program is None or not program.garbage_lines:
        return ""
    return ", and what it writes to standard output is not the protocol's"


def _status(status: int) -> ConnectionLost:
    hint = "; check its headers" if status in (401, 403) else "; check its url" if status in _UNKNOWN_SESSION else ""
    return ConnectionLost(f"it answered with status {status}{hint}", not_run=status in _UNKNOWN_SESSION)
