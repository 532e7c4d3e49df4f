"""What every client's connection has, whoever reads its requests: word of a slow reader, an end for one that has
stopped, and for one that comes when descriptors run short."""

from __future__ import annotations

import fcntl
import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.downstream import client_socket
from proxy.downstream.client_socket import HURRIED_S, KEEPALIVE_S, STALLED_S, UNSENT_BYTES, WRITE_BUFFER_BYTES
from proxy.downstream.descriptors import Left, left_of
from proxy.telemetry.record import EndState
from tests.support.client_line import office
from tests.support.memory_line import Clock, turns
from tests.support.raw_client import chat, post, raw_client
from tests.support.records import until
from tests.support.served import one_route, served
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

each_reader_of_requests = pytest.mark.parametrize("quick", [True, False], ids=["quick", "aiohttp's"])


@each_reader_of_requests
async def test_those_who_wait_for_a_slow_reader_are_told_until_they_want_it_no_more(quick: bool) -> None:
    heard: list[bool] = []
    async with office(knows_heads=quick) as there:
        line = there.line()
        assert line.is_quick == quick
        line.protocol.tell_of_writing(heard.append)
        line.fall_behind()
        assert line.protocol.writing_paused
        line.catch_up()
        assert not line.protocol.writing_paused
        assert heard == [True, False]
        line.protocol.tell_of_writing(None)
        line.fall_behind()
        line.catch_up()
    assert heard == [True, False]


@each_reader_of_requests
async def test_nobody_is_told_of_a_connection_that_is_gone(quick: bool) -> None:
    heard: list[bool] = []
    async with office(knows_heads=quick) as there:
        line = there.line()
        line.protocol.tell_of_writing(heard.append)
        line.reset()
        await turns()
        assert line.protocol._on_writing is None
    assert heard == []


@each_reader_of_requests
async def test_little_waits_for_a_slow_reader_before_we_are_told(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        assert there.line().high == WRITE_BUFFER_BYTES


async def test_the_kernel_holds_little_unsent(tmp_path: Path) -> None:
    async with served("server: {port: 0}\nroutes: {m: demo://}\n", tmp_path) as gateway:
        async with raw_client(gateway.port):
            await until(lambda: len(gateway.connections) == 1)
            [connection] = gateway.connections
            assert connection.transport is not None
            raw = connection.transport.get_extra_info("socket")
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES


@each_reader_of_requests
async def test_a_reader_that_takes_nothing_for_a_minute_is_dropped(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with office(knows_heads=quick) as there:
        line = there.line()
        line.fall_behind()
        await clock.advance(STALLED_S - 1)
        assert not line.closed
        await clock.advance(1.1)
        assert line.closed
        await turns()
        assert there.server.connections == []


@each_reader_of_requests
async def test_a_reader_is_given_another_minute_each_time_it_has_taken_something(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with office(knows_heads=quick) as there:
        there.desk.may_answer.clear()  # or it would be idle
        line = await there.say(post("/k", b""))
        line.fall_behind(10)
        for left in range(9, 4, -1):
            await clock.advance(STALLED_S - 1)
            line.unsent_bytes = left
            await clock.advance(1.1)
            assert not line.closed
        await clock.advance(STALLED_S + 0.1)
        assert line.closed


@each_reader_of_requests
async def test_a_reader_that_has_caught_up_is_watched_no_more(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with office(knows_heads=quick) as there:
        line = there.line()
        line.fall_behind()
        line.catch_up()
        await clock.advance(STALLED_S + 1)
        assert not line.closed


async def test_a_reader_that_stopped_is_watched_on_when_another_reads_its_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    async with office() as there:
        line = there.line()
        line.fall_behind()
        await clock.advance(STALLED_S / 2)
        line.arrive(b"GET / HTTP/1.1\r\n")
        assert not line.is_quick
        assert line.protocol.writing_paused
        await clock.advance(STALLED_S - 1)
        assert not line.closed
        await clock.advance(1.1)
        assert line.closed


async def never_ending(peer: Peer) -> None:
    """Sends content for as long as it is read."""
    await peer.request()
    await peer.send(OK_EVENTS)
    piece = chunk(content("x" * 16_000) * 4)
    while True:
        await peer.send(piece)


async def test_a_reader_that_stopped_is_dropped_with_its_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "STALLED_S", 0.1)
    async with scripted_upstream(never_ending) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            client.pause()
            await client.send(post("/v1/chat/completions", chat()))
            record = await gateway.record()
    assert record.end_state is EndState.CLIENT_CLOSED


async def test_a_reader_that_stopped_after_the_end_of_its_answer_is_dropped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "STALLED_S", 0.1)
    big = content("x" * 7_000_000)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(big), chunk(STOP + DONE), LAST_CHUNK)
        await peer.closed()

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            client.pause()
            await client.send(post("/v1/chat/completions", chat()))
            record = await gateway.record()
            assert record.end_state in (EndState.COMPLETED, EndState.CLIENT_CLOSED)
            await until(lambda: gateway.connections == [])
            client.resume()
            answer = await client.answer()
    assert not answer.whole
    assert len(answer.body) < len(big)


@contextmanager
def socket_leaving(left: Left) -> Iterator[socket.socket]:
    """A socket with as high a number as if all below it were in use."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = next(number for number in range(most // 2, most) if left_of(most, number) is left)
    with socket.socket() as low, socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD, number)) as high:
        yield high


@each_reader_of_requests
async def test_a_client_behind_whom_few_descriptors_are_left_is_one_too_many(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        with socket_leaving(Left.ENOUGH) as one, socket_leaving(Left.FEW) as more:
            lines = [there.line(raw=one), there.line(raw=more)]
        assert [line.protocol.is_one_too_many for line in lines] == [False, True]
        assert not any(line.closed for line in lines)


@each_reader_of_requests
async def test_a_client_behind_whom_only_the_reserved_ones_are_left_is_dropped(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        with socket_leaving(Left.RESERVED) as last:
            line = there.line(raw=last)
        assert (line.closed, line.sent) == (True, b"")
        await turns()
        assert there.server.connections == []


async def test_a_client_that_is_one_too_many_and_says_nothing_is_closed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with office() as there:
        with socket_leaving(Left.ENOUGH) as one, socket_leaving(Left.FEW) as more:
            early, late = there.line(raw=one), there.line(raw=more)
        await clock.advance(HURRIED_S - 0.1)
        assert not late.closed
        await clock.advance(0.2)
        assert late.closed
        assert not early.closed
        await clock.advance(KEEPALIVE_S)
        assert early.closed
