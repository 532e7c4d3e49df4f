"""A tool server that is a program: started, spoken to in lines of JSON over its standard input and output, ended.

What is said is the session's business. The library's own way to run a program would write what it cannot read, and
with it results, into the log, hold a line of any length, and not tell when the program has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage

LINE_BYTES = 64 << 20
"""The longest message a program may send; many give a result twice in it, as text and as JSON."""
EXIT_WITHIN_S = 2.0
"""How long it may take to end, once its input has ended, and again once it was told to."""
LOGGED_CHARACTERS = 500

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]

logger = logging.getLogger("penstock")


class Program:
    """One run of a program; `name` is its server's. What it says on standard error is logged at debug level, with the
    values of `env` blotted out.

    `incoming` and `outgoing` are the messages from it and to it. `on_ended` is called when it has closed its output.
    The owner's duty: `start` it once, then `stop` it, whether it has ended or not.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], on_ended: Callable[[], None]) -> None:
        self._name = name
        self._command = command
        self._env = env
        self._on_ended = on_ended
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._heard, self.incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self.outgoing, self._to_say = anyio.create_memory_object_stream[SessionMessage](0)
        self.garbage_lines = 0
        """Lines on its standard output that were no messages."""
        self.ended = False
        """It has closed its output."""
        self.too_large = False
        """It sent a message that was too large, and is heard no more."""
        self.exit_code: int | None = None
        """With what it ended, if it did so by itself; negative for a signal. Known once it was stopped."""

    async def start(self) -> None:
        """Start it, with a minimal environment and its own variables. Raises OSError where it cannot be run."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**get_default_environment(), **self._env},
            start_new_session=True,  # a signal reaches its children too, and Ctrl-C in our terminal does not reach it
            limit=LINE_BYTES,
        )
        self._tasks = [asyncio.create_task(work()) for work in (self._hear, self._say, self._log)]

    async def stop(self) -> None:
        """End it: its input first, as the protocol asks; then by signals."""
        try:
            if self._process is not None:
                await self._end(self._process)
        finally:
            self._signal(signal.SIGKILL)  # whatever it started and left behind
            self.outgoing.close()
            self.incoming.close()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=EXIT_WITHIN_S)
            for task in self._tasks:
                task.cancel()
            self._heard.close()
            self._to_say.close()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        by_itself = self.ended
        process.stdin.close()
        for next_signal in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_WITHIN_S):
                    await process.wait()
                    self.exit_code = process.returncode if by_itself else None
                    return
            by_itself = False
            self._signal(next_signal)
        await process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """To the program and all it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        try:
            while line := await stdout.readline():
                if (message := _message(line)) is not None:
                    await self._heard.send(SessionMessage(message))
                elif line.strip():
                    self._notice_garbage(line)
        except ValueError:
            self.too_large = True
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # nobody listens any more
        finally:
            self.ended = stdout.at_eof()
            self._heard.close()
            self._on_ended()
        while await stdout.read(LINE_BYTES):
            pass  # until it is stopped: a pipe that nobody reads would keep it waiting

    async def _say(self) -> None:
        assert self._process is not None
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(ConnectionError):  # it has gone, which `_hear` sees
            async for message in self._to_say:
                stdin.write(message.message.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n")
                await stdin.drain()

    async def _log(self) -> None:
        assert self._process is not None
        stderr = self._process.stderr
        assert stderr is not None
        while not stderr.at_eof():
            with contextlib.suppress(ValueError):  # a line without an end
                line = await stderr.readline()
                if line.strip() and logger.isEnabledFor(logging.DEBUG):
                    logger.debug('tool server "%s": %s', self._name, self._shown(line))

    def _shown(self, line: bytes) -> str:
        """A line of its log, without our secrets and of bounded length."""
        text = line.decode("utf-8", "replace").rstrip()
        for value in sorted(self._env.values(), key=len, reverse=True):
            if len(value) > 3:
                text = text.replace(value, "***")
        return text[:LOGGED_CHARACTERS]

    def _notice_garbage(self, line: bytes) -> None:
        self.garbage_lines += 1
        if self.garbage_lines == 1:
            logger.warning(
                'tool server "%s" writes other things than messages to its standard output (%d bytes the first time); '
                "its log belongs on standard error",
                self._name,
                len(line),
            )


def _message(line: bytes) -> JSONRPCMessage | None:
    try:
        return JSONRPCMessage.model_validate_json(line)
    except ValueError:
        return None
