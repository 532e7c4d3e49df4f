"""A client leaves: in each phase of its request, in every way there is, in every dialect. Its upstream is closed at
once, nothing stays in flight or in a queue, and what it has used is recorded. Of Realtime, `downstream/test_realtime`
tells."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import Phase
from tests.support.bad_replicas import deaf
from tests.support.dialects import DIALECTS, Dialect
from tests.support.leaving import Asked, asked, ways
from tests.support.memory_line import turns
from tests.support.model_words import WELL
from tests.support.records import in_flight, queued, request_record, until
from tests.support.served import PATIENCE_S, Served, one_route, served
from tests.support.steps import Step, pieces
from tests.support.upstream import Peer, answer, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.telemetry.record import RequestRecord

CLOSED_WITHIN_S = 1.0
"""The aim is 100 ms, on a machine that does nothing else."""

STREAMING = {
    Phase.HEADERS: (),
    Phase.FIRST_EVENT: ("head", "a comment"),
    Phase.STREAM: ("head", "preamble", "one"),
}
WHOLE: dict[Phase, tuple[Step, ...]] = {Phase.HEADERS: (), Phase.RESPONSE: (answer(200, WELL)[:-5],)}


class Watched:
    """A model server that takes these steps, then waits until its connection is closed."""

    def __init__(self, dialect: Dialect, steps: tuple[Step, ...]) -> None:
        self._pieces = pieces(dialect.words, steps)
        self.sent = asyncio.Event()
        self.closed = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(*self._pieces)
        self.sent.set()
        await peer.closed()
        self.closed.set()


def cases() -> list[object]:
    return [
        pytest.param(dialect, phase, way, id=f"{dialect.name}, {phase.value}, {way}")
        for dialect in DIALECTS
        for phase in (STREAMING if dialect.streams else WHOLE)
        for way in ways(dialect)
    ]


def leavers() -> list[object]:
    return [pytest.param(dialect, way, id=f"{dialect.name}, {way}") for dialect in DIALECTS for way in ways(dialect)]


@pytest.mark.parametrize(("dialect", "phase", "way"), cases())
async def test_its_upstream_is_closed_at_once(dialect: Dialect, phase: Phase, way: str, tmp_path: Path) -> None:
    watched = Watched(dialect, (STREAMING if dialect.streams else WHOLE)[phase])
    async with scripted_upstream(watched.script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with asked(gateway, dialect) as request:
            await reached(watched, phase, request)
            async with asyncio.timeout(CLOSED_WITHIN_S):
                await request.leave(way)
                await watched.closed.wait()
            record = await left(gateway, phase)
    assert record.attempts == 1
    if phase is Phase.STREAM:
        assert (record.tokens_out, record.tokens_estimated) == (1, True)
        assert record.tokens_in


async def reached(watched: Watched, phase: Phase, request: Asked) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await watched.sent.wait()
    if phase is Phase.STREAM:
        await request.hear("one")
    else:
        await asyncio.sleep(0.01)  # what was sent is read
        await turns(20)


async def left(gateway: Served, phase: Phase) -> RequestRecord:
    """The first request's record, which says that its client left in this phase; nothing of it is left."""
    record = await request_record(gateway)
    assert (record.end_state, record.status, record.phase) == ("client_closed", 499, phase)
    figures = gateway.gateway.figures()
    assert figures["penstock_client_disconnects_total"][("m", phase.value)] == [1]
    await until(lambda: in_flight(gateway) == 0)
    return record


@pytest.mark.parametrize(("dialect", "way"), leavers())
async def test_a_client_that_leaves_while_its_replica_is_connected_to(
    dialect: Dialect, way: str, tmp_path: Path
) -> None:
    async with deaf() as url, served(one_route(url, "timeouts: {connect: 60s}"), tmp_path) as gateway:
        async with asked(gateway, dialect) as request:
            await until(lambda: in_flight(gateway) == 1)
            await turns(20)
            await request.leave(way)
            await left(gateway, Phase.CONNECT)


@pytest.mark.parametrize(("dialect", "way"), leavers())
async def test_a_client_that_leaves_the_queue_leaves_its_place(dialect: Dialect, way: str, tmp_path: Path) -> None:
    watched = Watched(dialect, () if not dialect.streams else STREAMING[Phase.STREAM])
    async with scripted_upstream(watched.script) as upstream:
        async with served(one_route(upstream.url, "limits: {streams: 1, queue: 4}"), tmp_path) as gateway:
            async with asked(gateway, dialect), asked(gateway, dialect) as request:
                await until(lambda: queued(gateway) == 1)
                await watched.sent.wait()
                await request.leave(way)
                await until(lambda: queued(gateway) == 0)
                await until(lambda: any(record.phase is Phase.QUEUE for record in gateway.records))
                assert in_flight(gateway) == 1
            await until(lambda: in_flight(gateway) == 0)
            assert upstream.connections == 1


@pytest.mark.parametrize("way", ["FIN", "RST"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_a_client_that_leaves_within_its_request_never_reaches_a_replica(
    dialect: Dialect, way: str, tmp_path: Path
) -> None:
    async with scripted_upstream(Watched(dialect, ()).script) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway:
            async with asked(gateway, dialect, half=True) as request:
                await asyncio.sleep(0.01)
                await request.leave(way)
                record = await gateway.record()  # of the request, or of the socket, which had none
            assert record.is_session == dialect.is_socket
            assert dialect.is_socket or (record.end_state, record.phase) == ("client_closed", Phase.BODY)
            assert upstream.connections == 0
            await until(lambda: sum(gateway.gateway.figures()["penstock_websocket_sessions"].get((), [0])) == 0)
