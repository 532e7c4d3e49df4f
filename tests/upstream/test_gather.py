"""When a busy loop pauses for more sockets, and what ends a pause at once."""

from __future__ import annotations

import asyncio
import select
import socket
import time

import pytest

from proxy.errors import UpstreamUnreachable
from proxy.protocols.openai import OPENAI
from proxy.request import RequestBody
from proxy.routing.replica import parse_origin
from proxy.routing.table import Timeouts
from proxy.streams.stream import Stream
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.exchange import Exchange
from proxy.upstream.gather import BUSY_READS_A_SECOND, ENOUGH_READS, WINDOW_S, Gatherer, gatherer
from proxy.upstream.pool import Pool
from tests.support.memory_line import Clock, turns
from tests.support.upstream import OK_EVENTS, ROLE, Peer, answer, chunk, content, scripted_upstream

PAUSE_S = 0.005
BUSY_READS = int(BUSY_READS_A_SECOND * WINDOW_S * 2)
A_WINDOW_S = WINDOW_S * 1.01  # sums of floats fall short of it


class Poll:
    """Stands for `select.poll`: keeps the pauses instead of waiting."""

    pauses_ms: list[float]

    def __init__(self) -> None:
        Poll.pauses_ms = []

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        Poll.pauses_ms.append(timeout_ms)
        return []


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(select, "poll", Poll)
    return Clock(monkeypatch)


async def turn(gatherer: Gatherer, reads: int) -> None:
    read(gatherer, reads)
    await turns()


def read(gatherer: Gatherer, times: int = 1) -> None:
    for _ in range(times):
        if not gatherer.reads:
            gatherer.begin_turn()
        gatherer.reads += 1


async def test_a_quiet_loop_never_pauses(clock: Clock) -> None:
    quiet = Gatherer(PAUSE_S)
    for _ in range(10):
        await clock.advance(A_WINDOW_S)
        await turn(quiet, 1)
    assert Poll.pauses_ms == []


async def test_a_busy_loop_pauses_once_a_turn_that_found_little(clock: Clock) -> None:
    busy = Gatherer(PAUSE_S)
    await turn(busy, BUSY_READS)
    await clock.advance(A_WINDOW_S)
    await turn(busy, 1)
    assert Poll.pauses_ms == [PAUSE_S * 1000]
    await turn(busy, ENOUGH_READS - 1)
    assert len(Poll.pauses_ms) == 2
    await turn(busy, ENOUGH_READS)
    assert len(Poll.pauses_ms) == 2


async def test_a_loop_that_has_calmed_down_pauses_no_more(clock: Clock) -> None:
    calm = Gatherer(PAUSE_S)
    await turn(calm, BUSY_READS)
    await clock.advance(A_WINDOW_S)
    await turn(calm, 1)
    await clock.advance(A_WINDOW_S)
    await turn(calm, 1)
    await turn(calm, 1)
    assert len(Poll.pauses_ms) == 1


async def test_an_awaited_first_event_ends_the_pause_at_once() -> None:
    near, far = socket.socketpair()
    with near, far:
        patient = Gatherer(10.0)
        patient._busy = True
        patient.await_first(near.fileno())
        far.send(b"first")
        started = time.monotonic()
        read(patient)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert time.monotonic() - started < 5
        patient.first_came(near.fileno())


async def test_what_came_first_waits_like_everything_else_from_then_on() -> None:
    near, far = socket.socketpair()
    with near, far:
        brief = Gatherer(0.05)
        brief._busy = True
        brief.await_first(near.fileno())
        brief.first_came(near.fileno())
        far.send(b"second")
        started = time.monotonic()
        read(brief)
        await turns()
        assert time.monotonic() - started >= 0.05


async def test_off_is_no_gatherer() -> None:
    assert gatherer("off") is None
    assert isinstance(gatherer("auto"), Gatherer)
    assert isinstance(gatherer(0.002), Gatherer)


class Noting(Gatherer):
    """A gatherer that notes which sockets it was told of."""

    def __init__(self) -> None:
        super().__init__(PAUSE_S)
        self.told: list[str] = []

    def await_first(self, descriptor: int) -> None:
        self.told.append("await")
        super().await_first(descriptor)

    def first_came(self, descriptor: int) -> None:
        self.told.append("came")
        super().first_came(descriptor)


@pytest.mark.parametrize("end", ["content", "whole answer", "lost", "left"])
async def test_a_connection_is_awaited_from_its_request_to_its_first_content(end: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        match end:
            case "content":
                await peer.send(OK_EVENTS, chunk(ROLE), chunk(content("a")))
                await peer.closed()
            case "whole answer":
                await peer.send(answer(200, b"{}"))
            case "left":
                await peer.closed()

    noting = Noting()
    async with scripted_upstream(script) as upstream:
        pool = Pool(noting)
        origin, _ = parse_origin(upstream.url)
        connection = await pool.connection(origin, connect_timeout_s=1, fresh=True)
        exchange = exchange_on(connection)
        assert noting.told == ["await"]
        if end == "left":
            exchange.close()
        elif end == "lost":
            with pytest.raises(UpstreamUnreachable):
                await exchange.opened
        else:
            await exchange.opened
        assert noting.told == ["await", "came"]
        await pool.close()
        assert noting.told == ["await", "came"]


def exchange_on(connection: UpstreamConnection) -> Exchange:
    body = RequestBody.parse(b'{"model":"m","stream":true}')
    exchange = Exchange(
        stream=Stream(),
        watcher=OPENAI.watcher(body),
        streaming=True,
        max_event_bytes=1 << 20,
        timeouts=Timeouts(None, None, None, None),
        credentials=(),
        on_closed=lambda: None,
        on_malformed=lambda: None,
    )
    exchange.begin(connection, b"POST /v1/chat/completions HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n")
    return exchange
