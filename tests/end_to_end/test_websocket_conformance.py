"""RFC 6455, case by case: the Autobahn suite against a client's side and a model server's side of the gateway.

Left out: 12 and 13, which are about compression; the gateway agrees to none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import WSMsgType, web
from kosoku import FailureError, run_fuzzingclient, run_fuzzingserver

from proxy.downstream.connection import ClientConnection
from proxy.downstream.server import ClientRunner
from proxy.downstream.session_socket import Socket
from proxy.downstream.websocket import CLOSE_WITHIN_S, WRITER_LIMIT_BYTES
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.balancer import RoundRobin
from proxy.routing.replica import Origin, Replica
from proxy.routing.table import Route, Timeouts
from proxy.upstream.upgrade import SocketLimits, upgrade
from tests.support.realtime_server import realtime_server
from tests.support.served import one_route, served

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from kosoku._kosoku import CaseResult

    from proxy.errors import UpstreamError
    from proxy.upstream.websocket import UpstreamSocket
    from proxy.wire.messages import Opcode

pytestmark = pytest.mark.slow

COMPRESSION = ["12.*", "13.*"]
LARGEST_BYTES = 32 << 20


async def failures(running: Coroutine[None, None, list[CaseResult]], least: int) -> dict[str, str]:
    """The cases that went wrong, and how; at least so many must have been tried."""
    try:
        async with asyncio.timeout(300):
            results = await running
    except FailureError as error:
        results = error.results
    assert len(results) >= least
    return {each.case_id: f"{each.behavior.value}, {each.behavior_close.value}" for each in results if not each.passed}


async def test_a_realtime_session_conforms_towards_the_client_and_passes_all_of_it_on(tmp_path: Path) -> None:
    async with realtime_server() as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        url = f"{gateway.ws_url}/v1/realtime?model=m"
        assert await failures(run_fuzzingclient(url, None, COMPRESSION, concurrency=4), 300) == {}
        for socket in upstream.sockets:
            await socket.wait_closed()


async def test_a_sessions_socket_conforms_but_for_a_close_code_that_aiohttp_lets_through() -> None:
    async def echo(request: web.Request) -> Socket:
        connection = request.protocol
        assert isinstance(connection, ClientConnection)
        connection.watch_frames()
        socket = Socket(
            compress=False,
            max_msg_size=LARGEST_BYTES + 1,
            heartbeat=25.0,
            writer_limit=WRITER_LIMIT_BYTES,
            timeout=CLOSE_WITHIN_S,
        )
        await socket.prepare(request)
        async for message in socket:
            await (socket.send_str if message.type is WSMsgType.TEXT else socket.send_bytes)(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/", echo)
    runner = ClientRunner(app, 10.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}/"
        assert list(await failures(run_fuzzingclient(url, None, COMPRESSION, concurrency=4), 300)) == ["7.9.5"]
    finally:
        await runner.cleanup()


class Echo:
    """A listener that says back whatever it hears; `last` is the last of it."""

    def __init__(self, socket: UpstreamSocket) -> None:
        self.last = b""
        self._socket = socket

    def message(self, opcode: Opcode, payload: bytes) -> bool:
        self.last = payload
        self._socket.send(opcode, payload)
        return False

    def closed(self, code: int | None, reason: str) -> None: ...
    def lost(self, error: UpstreamError) -> None: ...


async def visit(origin: Origin, path: str, query: str) -> bytes:
    """A socket to this path of the fuzzing server, which echoes until that closes; the last message."""
    replica = Replica(0, origin, "")
    route = Route("m", "penstock", (), (replica,), RoundRobin(), Timeouts(5.0, 5.0, None, None), None, False)
    request = ProxyRequest(path, query, (), (), RequestBody.parse(b'{"model":"m"}'), "req_1")
    over = asyncio.Event()
    socket = await upgrade(
        request,
        (),
        route,
        replica,
        SocketLimits(LARGEST_BYTES, None),
        tls=None,
        on_connected=lambda: None,
        on_over=lambda _: over.set(),
    )
    echo = Echo(socket)
    socket.listen(echo)
    async with asyncio.timeout(60):
        await over.wait()
    return echo.last


async def test_the_model_servers_side_conforms() -> None:
    async with run_fuzzingserver(None, COMPRESSION, port=0) as server:
        origin = Origin("http", server.address, server.port)
        count = int(await visit(origin, "/getCaseCount", ""))
        for case in range(1, count + 1):
            await visit(origin, "/runCase", f"case={case}&agent=penstock")
        await visit(origin, "/updateReports", "agent=penstock")
        assert await failures(server.get_result(), 300) == {}
