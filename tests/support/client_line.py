"""Clients of a server in memory: what one sends comes in reads of the test's choosing, and what it gets is kept."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, cast

from aiohttp import web

from proxy.access.keys import Keyring
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.downstream.body import BodyLimits, read_body
from proxy.downstream.gate import Gate
from proxy.downstream.known_heads import KnownHeads
from proxy.downstream.quick_connection import QuickConnection
from proxy.downstream.server import ClientRunner, ClientServer
from proxy.errors import GatewayError
from tests.support.memory_line import MemoryTransport, turns

MAX_BODY_BYTES = 100_000
HOME = "127.0.0.1"
_DATE = re.compile(rb"Date: [^\r]*|req_[0-9a-f]{24}")


class ClientTransport(MemoryTransport):
    """A client's connection from the address `peer`. `high` is where the protocol wants to be told of a slow reader.

    While it `stays_open`, a close waits for what was written, as with a reader that has stopped. `raw` is a
    socket to ask about; nothing is sent on it.
    """

    def __init__(self, protocol: asyncio.Protocol, peer: str = HOME, raw: socket.socket | None = None) -> None:
        self.peer = peer
        self.raw = raw
        self.high: int | None = None
        self.stays_open = False
        super().__init__(protocol)

    @property
    def protocol(self) -> Any:
        """Who reads at present."""
        return self._protocol

    @property
    def is_quick(self) -> bool:
        return isinstance(self._protocol, QuickConnection)

    @property
    def said(self) -> bytes:
        """What was sent, less what differs each time."""
        return _DATE.sub(b"", self.sent)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self.raw or default
        return (self.peer, 1) if name == "peername" and self.peer else default

    def close(self) -> None:
        if not self.stays_open:
            super().close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def fall_behind(self, unsent_bytes: int = 1) -> None:
        """The client reads no more, and so much waits for it."""
        self.unsent_bytes = unsent_bytes
        self._protocol.pause_writing()

    def catch_up(self) -> None:
        self.unsent_bytes = 0
        self._protocol.resume_writing()


class Desk:
    """Answers each request with its method, target and body, once it `may_answer`. `served` has them in order, and who
    was let in for each. `gate` lets in whom it knows."""

    def __init__(self, gate: Gate, limits: BodyLimits) -> None:
        self.gate = gate
        self.served: list[tuple[str, bytes, object]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._limits = limits

    def lane(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        return self._answer(cast("web.Request", request))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            visitor = self.gate.let_in(request)
            body = await read_body(request, self._limits)
        except GatewayError as error:
            response = web.Response(status=error.status, text=str(error.code))
            if error.status in (400, 408, 413, 415):
                response.force_close()
            return response
        self.served.append((f"{request.method} {request.raw_path}", body, visitor))
        await self.may_answer.wait()
        return web.Response(body=f"{request.method} {request.raw_path} {len(body)} ".encode() + body)


class Office:
    """A server with a desk. `line` is a client's connection to it; `heads` are those it has learnt."""

    def __init__(self, desk: Desk, heads: KnownHeads | None, server: ClientServer) -> None:
        self.desk = desk
        self.heads = heads
        self.server = server

    def line(self, peer: str = HOME, raw: socket.socket | None = None) -> ClientTransport:
        return ClientTransport(cast("asyncio.Protocol", self.server()), peer, raw)

    async def say(self, *reads: bytes, peer: str = HOME) -> ClientTransport:
        """A new client that sends these reads, each when the ones before are answered."""
        line = self.line(peer)
        for read in reads:
            line.arrive(read)
            await settled(line)
        return line


@asynccontextmanager
async def office(
    *,
    knows_heads: bool = True,
    keys: Keyring | None = None,
    pause_s: float | None = None,
    head_timeout_s: float | None = None,
) -> AsyncIterator[Office]:
    """Serve clients in memory until the block ends; with `knows_heads` those of known heads without a parser."""
    gate = Gate(HostPolicy([], loopback_bind=True), OriginPolicy(None, loopback_bind=True), keys or Keyring())
    desk = Desk(gate, BodyLimits(MAX_BODY_BYTES, pause_s))
    heads = KnownHeads(MAX_BODY_BYTES) if knows_heads else None
    runner = ClientRunner(web.Application(), head_timeout_s, desk.lane, heads)
    await runner.setup()
    try:
        yield Office(desk, heads, cast("ClientServer", runner.server))
    finally:
        desk.may_answer.set()
        await runner.cleanup()
        await turns()


async def settled(line: ClientTransport, patience: int = 200) -> None:
    """Let the loop turn until nothing has been sent to the client for a while."""
    quiet, before = 0, -1
    for _ in range(patience):
        quiet = quiet + 1 if len(line.sent) == before else 0
        if quiet == 12:
            return
        before = len(line.sent)
        await asyncio.sleep(0)
