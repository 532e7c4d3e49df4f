"""A WebSocket client that breaks the rules while a request of its runs: the socket is closed with the code that says
so, what ran is stopped upstream, and nobody else notices. In every WebSocket dialect."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from websockets.frames import Opcode

from tests.support.dialects import BARE, RESPONSES_FRAMES, SOCKETS, Dialect, ask
from tests.support.model_words import CHAT, well
from tests.support.raw_socket import RawSocket, frame, raw_socket
from tests.support.realtime_server import realtime_server
from tests.support.records import in_flight, request_record, until
from tests.support.served import PATIENCE_S, Served, served
from tests.support.steps import pieces
from tests.support.upstream import Peer, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MAX_BODY = 4096
LARGE = b'"' + b"x" * MAX_BODY + b'"'

BREAKS: dict[str, tuple[bytes, int]] = {
    "oversized": (frame(LARGE), 1009),
    "oversized in its head": (b"\x81\xff" + (1 << 40).to_bytes(8) + b"mask", 1009),
    "oversized in fragments": (frame(b'"', fin=False) + frame(b"x" * 1000, 0, fin=False) * 5, 1009),
    "bad UTF-8": (frame(b'"\xff\xfe"'), 1007),
    "half a character": (frame('"ö'.encode()[:-1]), 1007),
    "a surrogate": (frame(b'"\xed\xa0\x80"'), 1007),
    "unmasked": (frame(b"{}", masked=False), 1002),
    "an unmasked ping": (frame(b"", Opcode.PING, masked=False), 1002),
    "a reserved bit": (frame(b"{}", rsv=4), 1002),
    "an unknown opcode": (frame(b"{}", 3), 1002),
    "an unknown control frame": (frame(b"", 11), 1002),
    "a continuation of nothing": (frame(b"{}", 0), 1002),
    "a message within a message": (frame(b"{", fin=False) + frame(b"{}"), 1002),
    "a ping in fragments": (frame(b"", Opcode.PING, fin=False), 1002),
    "a large ping": (frame(b"x" * 126, Opcode.PING), 1002),
    "a close of one byte": (frame(b"\x03", Opcode.CLOSE), 1002),
    "a close with a code that is none": (frame((1005).to_bytes(2), Opcode.CLOSE), 1002),
}


FLOODS = {
    "pings": frame(b"", Opcode.PING) * 5000,
    "pongs": frame(b"x", Opcode.PONG) * 5000,
    "fragments": frame(b"{", fin=False) + frame(b"", 0, fin=False) * 5000,
}


class Busy:
    """A model server whose answers begin and do not end, until they are closed; `open` counts those."""

    def __init__(self, dialect: Dialect) -> None:
        self._pieces = pieces(dialect.words, ("head", "preamble", "one"))
        self.open = 0

    async def script(self, peer: Peer) -> None:
        await peer.request()
        self.open += 1
        await peer.send(*self._pieces)
        await peer.closed()
        self.open -= 1


@asynccontextmanager
async def running(dialect: Dialect, tmp_path: Path) -> AsyncIterator[tuple[Served, RawSocket]]:
    """A socket whose request has begun to be answered; once it is closed, nothing must run any more, and a neighbour is
    served."""
    busy = Busy(dialect)
    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(busy.script) as upstream,
        scripted_upstream(well(CHAT)) as other,
        served(
            f"server: {{port: 0, max_body: {MAX_BODY}}}\nroutes: {{m: '{upstream.url}', other: '{other.url}'}}\n",
            tmp_path,
        ) as gateway,
    ):
        async with raw_socket(gateway, dialect.path, dialect.subprotocol) as socket:
            await socket.send(frame(dialect.message().encode()))
            while b"one" not in await socket.hear(Opcode.TEXT):
                pass
            assert busy.open == 1
            yield gateway, socket
            await until(lambda: busy.open == 0)
        assert (await request_record(gateway)).end_state == "client_closed"
        assert in_flight(gateway) == 0
        assert "".join((await ask(gateway, BARE, "other")).said) == "well"


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("dialect", SOCKETS, ids=lambda dialect: dialect.name)
async def test_who_breaks_the_rules_is_told_the_code_and_what_runs_is_stopped(
    case: str, dialect: Dialect, tmp_path: Path
) -> None:
    sent, code = BREAKS[case]
    async with running(dialect, tmp_path) as (_, socket):
        await socket.send(sent)
        assert await socket.close_code() == code


@pytest.mark.parametrize("dialect", SOCKETS, ids=lambda dialect: dialect.name)
async def test_a_binary_message_closes_with_1003(dialect: Dialect, tmp_path: Path) -> None:
    async with running(dialect, tmp_path) as (_, socket):
        await socket.send(frame(b"{}", Opcode.BINARY))
        assert await socket.close_code() == 1003


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("dialect", SOCKETS, ids=lambda dialect: dialect.name)
async def test_who_floods_is_told_so_and_what_runs_is_stopped(flood: str, dialect: Dialect, tmp_path: Path) -> None:
    async with running(dialect, tmp_path) as (_, socket):
        await socket.send(FLOODS[flood])
        assert await socket.close_code() == (1008 if dialect is RESPONSES_FRAMES else 4429)


@pytest.mark.parametrize("case", BREAKS)
async def test_realtime_tells_the_code_and_the_model_server_that_its_client_is_gone(case: str, tmp_path: Path) -> None:
    sent, code = BREAKS[case]
    async with asyncio.timeout(PATIENCE_S), realtime_server() as upstream:
        routes = f"server: {{port: 0, max_body: {MAX_BODY}}}\nroutes: {{m: '{upstream.url}'}}\n"
        async with served(routes, tmp_path) as gateway:
            async with raw_socket(gateway, "/v1/realtime?model=m") as socket:
                await socket.send(frame(b"hello"))
                assert await socket.hear(Opcode.TEXT) == b"hello"
                await socket.send(sent)
                assert await socket.close_code() == code
            assert (await upstream.closed())[0] == 1001
            await gateway.record()
            assert in_flight(gateway) == 0
