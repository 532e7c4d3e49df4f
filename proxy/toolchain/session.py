"""One connection to a tool server, from its start to its end, through the `mcp` library.

The library's contexts must be entered and left in one task: here a held one, which ends when the connection does.
Whether another connection follows is `server`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable

import anyio
import httpx
from mcp import types
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import McpError

from proxy import __version__
from proxy.config.model import Mcp
from proxy.toolchain.catalogue import Listed
from proxy.toolchain.endings import CLOSED, SESSION_TERMINATED, ConnectionLost, ending
from proxy.toolchain.program import Incoming, Outgoing, Program
from proxy.toolchain.results import Outcome, cut, failed, outcome_of

LIST_WITHIN_S = 10.0
CONNECT_WITHIN_S = 10.0
CLOSE_WITHIN_S = 6.0
"""A program's input is closed, then it is told to end, then it is killed: two seconds each."""
FAREWELL_WITHIN_S = 1.0

logger = logging.getLogger("penstock")


class Session:
    """A connection to the server called `name`; begins at once. `on_lost` is called when it has ended by itself.

    The owner's duty: `close` it.
    """

    def __init__(
        self, name: str, settings: Mcp, *, start_within_s: float, on_lost: Callable[[ConnectionLost], None]
    ) -> None:
        self._name = name
        self._settings = settings
        self._start_within_s = start_within_s
        self._on_lost = on_lost
        self._client: ClientSession | None = None
        self._program: Program | None = None
        self._listed: tuple[Listed, ...] = ()
        self._stopping = False
        self._stale = False
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        self._lost = CLOSED
        self._over = asyncio.get_running_loop().create_future()
        self._farewells: set[asyncio.Task[None]] = set()
        self._life = asyncio.create_task(self._live())

    @property
    def over(self) -> bool:
        return self._over.done() or self._stopping

    async def tools(self) -> tuple[Listed, ...]:
        """The server's tools, as of its last word. Raises ConnectionLost."""
        await self._settled.wait()
        self._require()
        return self._listed

    async def call(self, tool: str, arguments: dict[str, object], timeout_s: float) -> Outcome:
        """Run a tool; cancelled, or after `timeout_s`, the server is told to stop. Raises ConnectionLost."""
        await self._ready.wait()
        client = self._require()
        numbers: list[int] = []

        async def ask() -> types.CallToolResult:
            numbers.append(client._request_id)  # the one it is about to use: it has no other way to tell
            params = types.CallToolRequestParams(name=tool, arguments=arguments)
            request = types.ClientRequest(types.CallToolRequest(params=params))
            return await client.send_request(request, types.CallToolResult)

        asked = asyncio.create_task(ask())
        try:
            await asyncio.wait({asked, self._over}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not asked.done():
                asked.cancel()
                if numbers and not self.over:
                    self._say_cancelled(client, numbers[0])
        if asked.done():
            return await self._outcome(asked)
        if self._over.done():
            raise ConnectionLost(self._lost.why, not_run=self._lost.not_run)
        return failed(f'tool server "{self._name}" did not answer within {timeout_s:g} s')

    async def close(self) -> None:
        """End the connection, and wait until it is gone."""
        self._stopping = True
        self._wake.set()
        if self._client is not None:
            await asyncio.wait({self._life}, timeout=CLOSE_WITHIN_S)
        self._life.cancel()
        await asyncio.gather(self._life, *self._farewells, return_exceptions=True)

    # ---- a call ----

    def _require(self) -> ClientSession:
        if self._client is None or self.over:
            raise ConnectionLost(self._lost.why, not_run=True)
        return self._client

    async def _outcome(self, asked: asyncio.Task[types.CallToolResult]) -> Outcome:
        try:
            result = asked.result()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise await self._why_lost(not_run=True) from None
        except McpError as exc:
            if exc.error.code not in (types.CONNECTION_CLOSED, SESSION_TERMINATED):
                return failed(cut(exc.error.message))
            raise await self._why_lost(not_run=exc.error.code == SESSION_TERMINATED) from None
        except ValueError:
            return failed(f'tool server "{self._name}" gave an answer that is no tool result')
        content = [block.model_dump(mode="json", by_alias=True) for block in result.content]
        return outcome_of(content, result.structuredContent, is_error=bool(result.isError))

    async def _why_lost(self, *, not_run: bool) -> ConnectionLost:
        """The connection is of no more use: see it end, and say why."""
        self._wake.set()
        await asyncio.wait({self._over}, timeout=CLOSE_WITHIN_S)
        return ConnectionLost(self._lost.why, not_run=not_run)

    def _say_cancelled(self, client: ClientSession, number: int) -> None:
        """In a task of its own: whoever was cancelled does not wait for it."""
        task = asyncio.create_task(_cancelled(client, number))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    # ---- its life ----

    async def _live(self) -> None:
        try:
            async with self._transport() as (incoming, outgoing):
                info = types.Implementation(name="penstock", version=__version__)
                async with ClientSession(incoming, outgoing, message_handler=self._hear, client_info=info) as client:
                    async with asyncio.timeout(self._start_within_s):
                        await client.initialize()
                        self._listed = await _all_tools(client)
                    self._client = client
                    self._ready.set()
                    self._settled.set()
                    await self._stay(client)
        except Exception as exc:
            self._lost = ending(exc, self._program)
        finally:
            self._client = None
            self._over.set_result(None)
            self._ready.set()
            self._settled.set()
            if not self._stopping:
                self._on_lost(self._lost)

    async def _stay(self, client: ClientSession) -> None:
        """Until the end; the tools are listed again when the server says that they have changed."""
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            if self._stale and not self._stopping:
                await self._list_again(client)
            elif not self._stopping:
                raise ConnectionLost("nobody answers any more")

    async def _list_again(self, client: ClientSession) -> None:
        self._stale = False
        try:
            async with asyncio.timeout(LIST_WITHIN_S):
                self._listed = await _all_tools(client)
        except TimeoutError:
            logger.warning('tool server "%s" said that its tools changed, but did not list them', self._name)
        if not self._stale:
            self._settled.set()

    async def _hear(self, message: object) -> None:
        """What the server says unasked."""
        said = message.root if isinstance(message, types.ServerNotification) else None
        if isinstance(said, types.ToolListChangedNotification) and self._client is not None:
            self._stale = True
            self._settled.clear()
            self._wake.set()

    # ---- what it goes over ----

    def _transport(self) -> contextlib.AbstractAsyncContextManager[tuple[Incoming, Outgoing]]:
        return self._over_program() if self._settings.command is not None else self._over_http()

    @contextlib.asynccontextmanager
    async def _over_program(self) -> AsyncIterator[tuple[Incoming, Outgoing]]:
        env = {name: value.get_secret_value() for name, value in self._settings.env.items()}
        self._program = Program(self._name, self._settings.command or (), env, self._wake.set)
        try:
            await self._program.start()
            yield self._program.incoming, self._program.outgoing
        finally:
            await self._program.stop()

    @contextlib.asynccontextmanager
    async def _over_http(self) -> AsyncIterator[tuple[Incoming, Outgoing]]:
        assert self._settings.url is not None
        headers = {name: value.get_secret_value() for name, value in self._settings.headers.items()}
        url = self._settings.url.get_secret_value()
        timeout = httpx.Timeout(CONNECT_WITHIN_S, read=None)  # how long a call may take is the call's
        tls = await asyncio.to_thread(ssl.create_default_context)  # reads files for some 20 ms
        async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False, verify=tls) as http:
            async with streamable_http_client(url, http_client=http) as (incoming, outgoing, _):
                yield incoming, outgoing


async def _all_tools(client: ClientSession) -> tuple[Listed, ...]:
    """All pages of them; none of a server that says it has no tools."""
    capabilities = client.get_server_capabilities()
    if capabilities is not None and capabilities.tools is None:
        return ()
    listed: list[Listed] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
        listed += [Listed(tool.name, tool.description or "", tool.inputSchema) for tool in page.tools]
        cursor = page.nextCursor
        if not cursor:
            return tuple(listed)


async def _cancelled(client: ClientSession, number: int) -> None:
    params = types.CancelledNotificationParams(requestId=number, reason="nobody waits for it any more")
    notification = types.ClientNotification(types.CancelledNotification(params=params))
    with contextlib.suppress(TimeoutError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        async with asyncio.timeout(FAREWELL_WITHIN_S):
            await client.send_notification(notification)
