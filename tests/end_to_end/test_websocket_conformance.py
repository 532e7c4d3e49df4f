"""RFC 6455, case by case: the Autobahn suite against a client's side and a model server's side of the gateway.

Left out: 12 and 13, which are about compression; the gateway agrees to none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import WSMsgType
from kosoku import FailureError, run_fuzzingclient, run_fuzzingserver

from proxy.request import ProxyRequest, RequestBody
from proxy.routing.balancer import RoundRobin
from proxy.routing.replica import Origin, Replica
from proxy.routing.table import Route, Timeouts
from proxy.upstream.upgrade import SocketLimits, upgrade
from proxy.wire.frames import text_frame_head
from tests.support.realtime_server import realtime_server
from tests.support.served import one_route, served
from tests.support.socket_server import LARGEST_BYTES, socket_server

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from kosoku._kosoku import CaseResult

    from proxy.downstream.session_socket import Socket
    from proxy.errors import UpstreamError
    from proxy.upstream.websocket import UpstreamSocket
    from proxy.wire.messages import Opcode

pytestmark = pytest.mark.slow

COMPRESSION = ["12.*", "13.*"]


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
    async def echo(socket: Socket) -> None:
        while (message := await socket.receive()) is not None:
            is_text = message.type is WSMsgType.TEXT
            payload = message.data.encode() if is_text else message.data
            head = text_frame_head(len(payload))
            assert socket.transport is not None
            socket.transport.write((head if is_text else b"\x82" + head[1:]) + payload)

    async with socket_server(echo, message_bytes=LARGEST_BYTES) as port:
        url = f"ws://127.0.0.1:{port}/"
        assert list(await failures(run_fuzzingclient(url, None, COMPRESSION, concurrency=4), 300)) == ["7.9.5"]


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
