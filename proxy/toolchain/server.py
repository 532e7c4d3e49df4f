"""A tool server as the file names it: started when it is first needed, and again after it has died.

The connections themselves are `session`'s; when to try again, `restarts` says.
"""

from __future__ import annotations

import asyncio
import logging
from math import ceil

from proxy.config.model import Tool
from proxy.toolchain.catalogue import Listed
from proxy.toolchain.endings import CLOSED, ConnectionLost
from proxy.toolchain.restarts import Restarts
from proxy.toolchain.results import Outcome, failed
from proxy.toolchain.session import Session

START_WITHIN_S = 30.0
"""To start, greet and list the tools; a program may have to be fetched first."""

logger = logging.getLogger("penstock")


class ToolServerDown(Exception):
    """The server cannot be used now: a sentence that names it and says what to do."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ToolServer:
    """One entry of `tools`. The owner's duty: `close` it."""

    def __init__(self, name: str, settings: Tool, *, start_within_s: float = START_WITHIN_S) -> None:
        self.name = name
        self.owners = 0
        """How many configurations' servers it is among; the last one closes it."""
        self._settings = settings
        self._start_within_s = start_within_s
        self._restarts = Restarts()
        self._session: Session | None = None
        self._lost: ConnectionLost | None = None
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._now = asyncio.get_running_loop().time

    async def tools(self) -> tuple[Listed, ...]:
        """What it offers. Raises ToolServerDown."""
        try:
            return await self._connected().tools()
        except ConnectionLost as lost:
            raise self._down(lost) from lost

    async def call(self, tool: str, arguments: dict[str, object]) -> Outcome:
        """Run one of its tools. What fails is an outcome too; a call that was certainly not run is tried once more."""
        for again in (True, False):
            try:
                outcome = await self._connected().call(tool, arguments, self._settings.timeout_s)
            except ToolServerDown as down:
                return failed(str(down))
            except ConnectionLost as lost:
                if again and lost.not_run:
                    continue
                return failed(f'tool server "{self.name}": {lost.why}; the call was given up')
            self._restarts.answered()
            return outcome
        raise AssertionError("a call is tried twice at the most")

    async def close(self) -> None:
        """Close the connection, and end the program if it is one; nothing is started any more."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _connected(self) -> Session:
        """The connection, perhaps still beginning; a new one where the last is over. Raises ToolServerDown."""
        if self._closed:
            raise self._down(CLOSED)
        if self._session is not None and not self._session.over:
            return self._session
        if self._lost is not None and self._restarts.pause_s(self._now()) > 0:
            raise self._down(self._lost)
        self._part_from_last()
        self._session = Session(
            self.name, self._settings.mcp, start_within_s=self._start_within_s, on_lost=self._notice_loss
        )
        return self._session

    def _part_from_last(self) -> None:
        last, self._session = self._session, None
        if last is not None:
            task = asyncio.create_task(last.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _notice_loss(self, lost: ConnectionLost) -> None:
        self._lost = lost
        self._restarts.failed(self._now())
        logger.warning('tool server "%s": %s', self.name, lost.why)

    def _down(self, lost: ConnectionLost) -> ToolServerDown:
        pause_s = ceil(self._restarts.pause_s(self._now()))
        when = f"it is tried again in {pause_s} s" if pause_s else "the next request tries it again"
        return ToolServerDown(f'tool server "{self.name}": {lost.why}; {when}', pause_s or 1)
