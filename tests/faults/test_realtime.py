"""Faults of a Realtime model server: before it has agreed, the client's upgrade is answered with a status, or another
replica is dialled; after that, the socket is closed with a code that says so, and a 1000 is never made up."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from tests.support.bad_replicas import BadReplica, deaf, nameless, playing, refusing, without_tls
from tests.support.model_words import CHAT, ERROR_BODY
from tests.support.realtime_server import realtime_server
from tests.support.served import PATIENCE_S, Served, served
from tests.support.steps import Step, play
from tests.support.upstream import Peer, Script, answer, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

UNREACHABLE, INVALID, SILENT = (
    (502, "upstream_unreachable"),
    (502, "upstream_invalid"),
    (504, "first_token_timeout"),
)
SOON = "timeouts: {connect: 80ms, first_token: 80ms}"
LATER = "timeouts: {connect: 1s, first_token: 1s}"


@dataclass(frozen=True, slots=True)
class Row:
    """As in `test_before_content`."""

    replica: BadReplica | tuple[Step, ...]
    told: tuple[int, str]
    elsewhere: bool = True
    settings: str = ""

    @property
    def bad(self) -> BadReplica:
        return self.replica if callable(self.replica) else playing(play(CHAT, self.replica))


def refused(status: int) -> tuple[bytes]:
    return (answer(status, ERROR_BODY, b"Retry-After: 9"),)


SILENCE = {
    "connect timeout": Row(deaf, UNREACHABLE, settings=SOON),
    "no head": Row(("stall",), SILENT, settings=SOON),
    "no end of the head": Row((b"HTTP/1.1 101 Switching\r\nUpgr", "stall"), SILENT, settings=SOON),
}
FAULTS = {
    "refused": Row(refusing, UNREACHABLE),
    "no such name": Row(nameless, UNREACHABLE),
    "no TLS": Row(without_tls, UNREACHABLE),
    "accepts and closes": Row(("close",), UNREACHABLE),
    "accepts and resets": Row(("reset",), UNREACHABLE),
    "500": Row(refused(500), (500, "its_own")),
    "502": Row(refused(502), (502, "its_own")),
    "503": Row(refused(503), (503, "its_own")),
    "504": Row(refused(504), (504, "its_own")),
    "429": Row(refused(429), (429, "its_own")),
    "400": Row(refused(400), (400, "its_own"), elsewhere=False),
    "401": Row(refused(401), (401, "its_own"), elsewhere=False),
    "404": Row(refused(404), (404, "its_own"), elsewhere=False),
    "redirect": Row((answer(302, b"", b"Location: http://127.0.0.1:9/"), "close"), INVALID, elsewhere=False),
    "200": Row((answer(200, b"{}"), "close"), INVALID, elsewhere=False),
    "garbage status line": Row((b"NOPE/9 what\r\n\r\n", "close"), INVALID, elsewhere=False),
    "a 101 without its accept": Row(
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "close"), INVALID, False
    ),
    "oversized head": Row(
        (b"HTTP/1.1 101 Switching\r\nX-Large: " + b"x" * 70_000 + b"\r\n\r\n", "close"), INVALID, elsewhere=False
    ),
}


def routes(*urls: str, settings: str = "") -> str:
    listed = ", ".join(f'"{url}"' for url in urls)
    all = f"balance: round_robin, health: none, retry: {{attempts: {len(urls)}}}"
    return f"server: {{port: 0}}\nroutes: {{m: {{replicas: [{listed}], {all}{settings and ', ' + settings}}}}}\n"


def dial(gateway: Served) -> websockets.connect:
    return websockets.connect(gateway.ws_url + "/v1/realtime?model=m", compression=None, close_timeout=1)


def cases(faults: dict[str, Row]) -> list[object]:
    return [pytest.param(row, id=name) for name, row in faults.items()]


@pytest.mark.parametrize("row", cases(FAULTS | SILENCE))
async def test_alone_the_upgrade_is_answered_with_a_status(row: Row, tmp_path: Path) -> None:
    async with row.bad() as url, served(routes(url, settings=row.settings), tmp_path) as gateway:
        await assert_refused(gateway, row)
        record = await gateway.record()
        assert gateway.gateway.figures()["penstock_streams_in_flight"] == {("m",): [0]}
    assert (record.attempts, record.replica) == (1, 0)
    assert record.end_state not in (None, "completed", "client_closed", "error")


@pytest.mark.parametrize("row", cases(FAULTS | SILENCE))
async def test_beside_another_replica_the_client_notices_nothing(row: Row, tmp_path: Path) -> None:
    settings = LATER if row.settings else ""
    async with (
        row.bad() as url,
        realtime_server() as good,
        served(routes(url, good.url, settings=settings), tmp_path) as gateway,
    ):
        if not row.elsewhere:
            await assert_refused(gateway, row)
            assert good.requests == []
            return
        async with dial(gateway) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"
        record = await gateway.record()
    assert (record.attempts, record.replica, record.end_state) == (2, 1, "completed")


async def assert_refused(gateway: Served, row: Row) -> None:
    with pytest.raises(InvalidStatus) as raised:
        await dial(gateway)
    response = raised.value.response
    assert response.status_code == row.told[0]
    error = json.loads(response.body)["error"]
    assert error["code"] == row.told[1]
    assert "127.0.0.1" not in error["message"]
    retry_after = "9" if error["code"] == "its_own" else None
    assert response.headers.get("retry-after") == retry_after


# ---- after the upgrade ----


def hello() -> bytes:
    return Frame(Opcode.TEXT, b"hello").serialize(mask=False)


VANISHES = {
    "end between messages": (hello(), "close"),
    "end inside a frame": (hello() + hello()[:-2], "close"),
    "end inside a message": (hello() + b"\x01\x01h", "close"),
    "reset": (hello(), "reset"),
    "reset inside a frame": (hello() + hello()[:-2], "reset"),
    "a masked frame": (hello() + Frame(Opcode.TEXT, b"x").serialize(mask=True), "stall"),
    "an unknown opcode": (hello() + b"\x83\x00", "stall"),
    "a reserved bit": (hello() + b"\xc1\x00", "stall"),
    "bad UTF-8": (hello() + b"\x81\x01\xff", "stall"),
    "a close of one byte": (hello() + b"\x88\x01\x03", "stall"),
    "a frame that claims too much": (hello() + b"\x81\x7f" + (1 << 40).to_bytes(8, "big"), "stall"),
}


def agreeing(said: bytes, end: str) -> Script:
    """Agrees to the upgrade, says this and ends so."""

    async def script(peer: Peer) -> None:
        key = (await peer.request()).header("sec-websocket-key") or ""
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        head = (
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
        )
        await peer.send(head % accept, said)
        for _ in range(20):
            await asyncio.sleep(0)  # a reset takes with it what the gateway has not read yet
        if end == "reset":
            peer.reset()
        elif end == "stall":
            await peer.closed()

    return script


@pytest.mark.parametrize("fault", VANISHES)
async def test_a_model_server_that_vanishes_or_breaks_the_rules_is_a_1011(fault: str, tmp_path: Path) -> None:
    said, end = VANISHES[fault]
    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(agreeing(said, end)) as upstream,
        served(routes(upstream.url), tmp_path) as gateway,
    ):
        async with dial(gateway) as socket:
            assert await socket.recv() == "hello"
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        record = await gateway.record()
        assert gateway.gateway.figures()["penstock_streams_in_flight"] == {("m",): [0]}
    assert socket.close_code == 1011
    assert record.end_state in ("upstream_error", "upstream_truncated")
