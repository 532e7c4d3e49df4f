"""A client that reads slowly, or not at all: its own upstream is not read either, so that memory is bounded; its
neighbours notice nothing; and one that stays stopped is dropped. In every dialect that streams; of Realtime,
`downstream/test_realtime` tells. A reader that takes little all the time is `downstream/test_client_socket`'s."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.downstream import client_socket
from tests.support.dialects import STREAMING, Dialect, ask
from tests.support.leaving import asked
from tests.support.model_words import Words, well
from tests.support.records import in_flight, request_record
from tests.support.served import PATIENCE_S, Served, one_route, served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, Peer, chunk, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.leaving import Asked

PIECES = 200
PIECE = "x" * 64 * 1024
"""All of them are 13 MB: the kernel takes some 2 MB on each side of the gateway."""
HELD_BYTES = client_socket.WRITE_BUFFER_BYTES + 256 * 1024 + 2 * len(PIECE)
"""The most that may wait for one reader: what does before its upstream is paused, what the loop reads at once on top of
it, and the event that this completes."""

each_dialect = pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)


class Talking:
    """A model server that says many large events, if somebody takes them; `said` counts those that were taken."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self.said = 0
        self.closed = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        try:
            await peer.send(OK_EVENTS)
            for number in range(PIECES):
                await peer.send(chunk(self._words.content(f"<{number}>{PIECE}")))
                self.said += 1
            await peer.send(chunk(self._words.end), LAST_CHUNK)
            await peer.request()  # perhaps never
        finally:
            self.closed.set()

    async def paused(self) -> None:
        """Wait until nothing is taken any more."""
        before = -1
        while self.said > before or self.said == 0:
            before = self.said
            await asyncio.sleep(0.1)


@asynccontextmanager
async def beside_another(dialect: Dialect, tmp_path: Path) -> AsyncIterator[tuple[Talking, Served, Asked]]:
    """A request at a model server that talks, and a route `other` at one that says little."""
    talking = Talking(dialect.words)
    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(talking.script) as upstream,
        scripted_upstream(well(dialect.words)) as other,
        served(one_route(upstream.url) + f"  other: {{replicas: ['{other.url}']}}\n", tmp_path) as gateway,
        asked(gateway, dialect) as request,
    ):
        yield talking, gateway, request


@each_dialect
async def test_a_reader_that_stopped_pauses_its_upstream_alone_and_gets_all_of_it_later(
    dialect: Dialect, tmp_path: Path
) -> None:
    async with beside_another(dialect, tmp_path) as (talking, gateway, request):
        request.stop_reading()
        await talking.paused()
        assert "".join((await ask(gateway, dialect, "other")).said) == "well"
        assert talking.said < PIECES
        seen = await request.read_on()
    assert [text.removesuffix(PIECE) for text in seen.said] == [f"<{number}>" for number in range(PIECES)]
    assert (seen.done, seen.errors) == (True, [])


@each_dialect
async def test_a_reader_of_a_kibibyte_a_turn_gets_all_of_it_and_holds_up_its_upstream_alone(
    dialect: Dialect, tmp_path: Path
) -> None:
    async with beside_another(dialect, tmp_path) as (talking, gateway, request):
        request.read_slowly(1024)
        reading = asyncio.create_task(request.read_on())
        assert "".join((await ask(gateway, dialect, "other")).said) == "well"
        said, waiting = [talking.said], [0]
        while not reading.done():
            await asyncio.sleep(0)
            said.append(talking.said)
            waiting.append(most_waiting(gateway))
    seen = reading.result()
    assert said[1024] < PIECES  # when a mebibyte was read
    assert [text.removesuffix(PIECE) for text in seen.said] == [f"<{number}>" for number in range(PIECES)]
    assert (seen.done, seen.errors) == (True, [])
    assert 0 < max(waiting) < HELD_BYTES


def most_waiting(gateway: Served) -> int:
    """The most bytes that wait for any client, the kernel's aside."""
    transports = [connection.transport for connection in gateway.connections]
    return max(transport.get_write_buffer_size() for transport in transports if transport is not None)


@each_dialect
async def test_a_reader_that_stays_stopped_is_dropped_with_its_upstream(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "STALLED_S", 0.1)
    talking = Talking(dialect.words)
    async with (
        asyncio.timeout(PATIENCE_S),
        scripted_upstream(talking.script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        asked(gateway, dialect) as request,
    ):
        request.stop_reading()
        await talking.closed.wait()
        record = await request_record(gateway)
        assert in_flight(gateway) == 0
        await request.leave("RST")
    assert record.end_state == "client_closed"
    assert talking.said < PIECES
