"""The lines that figures travel on: the supervisor's rounds, driven word by word, and a worker's end of its line."""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from proxy import worker_metrics
from proxy.errors import Unavailable
from proxy.telemetry.metrics import Figures, from_json, to_json
from proxy.worker_metrics import ALL, ASK, FIGURES, GATHER, ROUND_S, FiguresLine, Gathering, Messages, message
from tests.support.memory_line import cuts

REQUESTS, IN_FLIGHT, UP = "penstock_requests_total", "penstock_streams_in_flight", "penstock_replica_up"
LABELS = ("m", "other", "http", "completed")


def figures(requests: int, in_flight: int = 0) -> Figures:
    return {REQUESTS: {LABELS: [requests]}, IN_FLIGHT: {("m",): [in_flight]}, UP: {("m", "0"): [1]}}


# ---- messages ----


def test_messages_are_found_however_they_are_cut() -> None:
    sent = message(ASK) + message(FIGURES, b'{"a":1}') + message(GATHER)
    for pieces in cuts(sent):
        messages = Messages()
        found = [each for piece in pieces for each in messages.feed(piece)]
        assert found == [(ASK, b""), (FIGURES, b'{"a":1}'), (GATHER, b"")]


# ---- the supervisor's side ----


class Supervisor:
    """A gathering with its selector, and its workers' ends of the lines, whose words are the test's."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self.gathering = Gathering(selector)
        self.ends: dict[int, socket.socket] = {}
        self._messages: dict[int, Messages] = {}

    def join(self, *pids: int) -> None:
        for pid in pids:
            line, end = socket.socketpair()
            end.setblocking(False)
            self.ends[pid], self._messages[pid] = end, Messages()
            self.gathering.join(pid, line)

    def say(self, pid: int, kind: bytes, content: bytes = b"") -> None:
        self.ends[pid].sendall(message(kind, content))
        self.turn()

    def tell(self, pid: int, own: Figures) -> None:
        self.say(pid, FIGURES, to_json(own))

    def turn(self) -> None:
        """Let it do what is ready."""
        while ready := [key for key, events in self._selector.select(0) if events]:
            for key in ready:
                key.data()

    def heard(self, pid: int) -> list[tuple[bytes, bytes]]:
        """What this worker was told since it was last looked at."""
        found: list[tuple[bytes, bytes]] = []
        try:
            while data := self.ends[pid].recv(1 << 16):
                found += self._messages[pid].feed(data)
                self.turn()
        except BlockingIOError:
            pass
        return found

    def everybody(self, pid: int) -> tuple[list[Figures], list[Figures]]:
        """The one answer this worker got: figures of now, and last ones."""
        [(kind, content)] = self.heard(pid)
        assert kind == ALL
        said = json.loads(content)
        return [from_json(each) for each in said["now"]], [from_json(each) for each in said["last"]]


@contextmanager
def supervisor_of(*pids: int) -> Iterator[Supervisor]:
    with selectors.DefaultSelector() as selector:
        made = Supervisor(selector)
        made.join(*pids)
        try:
            yield made
        finally:
            for pid, end in made.ends.items():
                made.gathering.leave(pid)
                end.close()


def test_one_asks_and_all_are_asked_and_the_one_is_told() -> None:
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        assert supervisor.heard(1) == supervisor.heard(2) == [(ASK, b"")]
        supervisor.tell(2, figures(5))
        assert supervisor.heard(1) == []
        supervisor.tell(1, figures(3))
        assert supervisor.everybody(1) == ([figures(3), figures(5)], [{}])
        assert supervisor.heard(2) == []
        assert supervisor.gathering.due_s is None


def test_who_asks_during_a_round_gets_one_that_began_later() -> None:
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        supervisor.tell(2, figures(5))
        supervisor.say(2, GATHER)  # has counted another one since
        supervisor.say(2, GATHER)
        assert supervisor.heard(2) == [(ASK, b"")]
        supervisor.tell(1, figures(3))
        assert [kind for kind, _ in supervisor.heard(1)] == [ASK, ALL, ASK]
        assert supervisor.heard(2) == [(ASK, b"")]
        supervisor.tell(1, figures(3))
        supervisor.tell(2, figures(6))
        told = supervisor.heard(2)
        assert [kind for kind, _ in told] == [ALL, ALL]
        assert from_json(json.loads(told[0][1])["now"][1]) == figures(6)


def test_a_silent_worker_counts_with_what_it_said_last() -> None:
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        supervisor.tell(1, figures(3))
        supervisor.tell(2, figures(5, in_flight=2))
        supervisor.heard(1)
        supervisor.say(1, GATHER)
        supervisor.tell(1, figures(4))
        assert supervisor.gathering.due_s is not None
        assert 0 < supervisor.gathering.due_s - time.monotonic() <= ROUND_S
        assert supervisor.heard(1) == [(ASK, b"")]
        supervisor.gathering.end_round()
        assert supervisor.everybody(1) == ([figures(4)], [{}, figures(5, in_flight=2)])


def test_a_late_answer_is_the_next_rounds() -> None:
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        supervisor.tell(1, figures(3))
        supervisor.gathering.end_round()
        supervisor.heard(1)
        supervisor.tell(2, figures(5))  # too late for anybody
        supervisor.say(1, GATHER)
        assert supervisor.heard(2) == [(ASK, b""), (ASK, b"")]
        supervisor.tell(1, figures(3))
        supervisor.tell(2, figures(6))
        assert supervisor.heard(1)[-1][0] == ALL


def test_a_worker_that_owes_an_answer_is_not_asked_again() -> None:
    with supervisor_of(1, 2) as supervisor:
        for _ in range(1000):
            supervisor.say(1, GATHER)
            supervisor.tell(1, figures(3))
            supervisor.gathering.end_round()
            assert [kind for kind, _ in supervisor.heard(1)] == [ASK, ALL]
        assert supervisor.heard(2) == [(ASK, b"")]


def test_what_a_dead_worker_counted_stays() -> None:
    with supervisor_of(1, 2, 3) as supervisor:
        supervisor.say(1, GATHER)
        for pid, own in ((1, figures(3)), (2, figures(5, in_flight=2)), (3, figures(7, in_flight=1))):
            supervisor.tell(pid, own)
        supervisor.heard(1)
        supervisor.gathering.leave(2)
        supervisor.gathering.leave(3)
        supervisor.gathering.leave(3)
        supervisor.join(4)
        supervisor.say(1, GATHER)
        supervisor.tell(1, figures(4))
        supervisor.tell(4, figures(1))
        supervisor.heard(1)
        supervisor.say(1, GATHER)
        supervisor.tell(1, figures(4))
        supervisor.tell(4, figures(1))
        [_, (_, content)] = supervisor.heard(1)
        [departed] = [from_json(each) for each in json.loads(content)["last"]]
        assert departed[REQUESTS] == {LABELS: [12]}
        assert not {IN_FLIGHT, UP} & set(departed)


def test_a_worker_that_dies_within_a_round_is_not_waited_for() -> None:
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        supervisor.tell(1, figures(3))
        supervisor.ends[2].close()
        supervisor.turn()
        assert supervisor.heard(1)[-1][0] == ALL
        assert supervisor.gathering.due_s is None
        supervisor.ends[2] = socket.socket()


def test_an_asking_worker_that_dies_is_answered_to_nobody() -> None:
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        supervisor.gathering.leave(1)
        supervisor.tell(2, figures(5))
        assert supervisor.gathering.due_s is None
        assert supervisor.heard(2) == [(ASK, b"")]


def test_an_answer_larger_than_the_line_goes_out_piece_by_piece() -> None:
    large: Figures = {REQUESTS: {(f"route-{n}", "other", "http", "completed"): [n] for n in range(20_000)}}
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(1, GATHER)
        supervisor.ends[2].setblocking(True)
        supervisor.tell(1, figures(1))
        data = message(FIGURES, to_json(large))
        for at in range(0, len(data), 50_000):
            supervisor.ends[2].sendall(data[at : at + 50_000])
            supervisor.turn()
        [(asked, _), (kind, content)] = supervisor.heard(1)
        assert (asked, kind) == (ASK, ALL)
        assert from_json(json.loads(content)["now"][1]) == large


def test_a_worker_that_reads_nothing_stops_nothing() -> None:
    large = to_json({REQUESTS: {(f"route-{n}", "other", "http", "completed"): [n] for n in range(20_000)}})
    with supervisor_of(1, 2) as supervisor:
        supervisor.say(2, GATHER)
        supervisor.tell(2, figures(1))
        supervisor.ends[1].setblocking(True)
        data = message(FIGURES, large)
        for at in range(0, len(data), 50_000):
            supervisor.ends[1].sendall(data[at : at + 50_000])
            supervisor.turn()
        supervisor.ends[1].setblocking(False)
        supervisor.heard(1)
        supervisor.say(1, GATHER)  # while what 2 asked for waits to be read
        supervisor.tell(1, figures(3))
        supervisor.gathering.end_round()
        assert supervisor.heard(1)[-1][0] == ALL


# ---- a worker's side ----


@pytest.fixture
async def line() -> AsyncIterator[tuple[FiguresLine, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A worker's line, whose own figures are 3 requests, and the supervisor's end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    worker = FiguresLine(ours)
    await worker.attend(lambda: figures(3, in_flight=1))
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    yield worker, reader, writer
    writer.close()
    await lost(worker)


async def said(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    messages = Messages()
    async with asyncio.timeout(5):
        while True:
            for found in messages.feed(await reader.read(65536)):
                return found


async def lost(worker: FiguresLine) -> None:
    """Until it has noticed that its supervisor is gone."""
    async with asyncio.timeout(5):
        while worker._transport is not None:
            await asyncio.sleep(0)


Line = tuple[FiguresLine, asyncio.StreamReader, asyncio.StreamWriter]


async def test_a_worker_tells_its_figures_when_asked(line: Line) -> None:
    _, reader, writer = line
    writer.write(message(ASK))
    kind, content = await said(reader)
    assert (kind, from_json(json.loads(content))) == (FIGURES, figures(3, in_flight=1))


async def test_a_worker_adds_up_what_it_is_told(line: Line) -> None:
    worker, reader, writer = line
    gathering = asyncio.create_task(worker.gather())
    assert await said(reader) == (GATHER, b"")
    now = [to_json(figures(3, in_flight=1)), to_json(figures(4, in_flight=2))]
    last = [to_json(figures(10, in_flight=9)), b"{}"]
    writer.write(message(ALL, b'{"now":[%b],"last":[%b]}' % (b",".join(now), b",".join(last))))
    everybody = await gathering
    assert everybody[REQUESTS] == {LABELS: [17]}
    assert everybody[IN_FLIGHT] == {("m",): [3]}
    assert everybody[UP] == {("m", "0"): [1]}


async def test_who_left_while_waiting_takes_nobody_elses_answer(line: Line) -> None:
    worker, reader, writer = line
    left = asyncio.create_task(worker.gather())
    stays = asyncio.create_task(worker.gather())
    assert await said(reader) == (GATHER, b"")
    left.cancel()
    writer.write(message(ALL, b'{"now":[%b],"last":[]}' % to_json(figures(1))))
    writer.write(message(ALL, b'{"now":[%b],"last":[]}' % to_json(figures(2))))
    assert (await stays)[REQUESTS] == {LABELS: [2]}
    assert left.cancelled()


async def test_a_supervisor_that_does_not_answer_is_an_error_of_ours(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _, writer = line
    monkeypatch.setattr(worker_metrics, "ANSWER_WITHIN_S", 0.01)
    with pytest.raises(Unavailable) as raised:
        await worker.gather()
    assert (raised.value.code, raised.value.retry_after_s) == ("metrics_unavailable", 1)
    writer.write(message(ALL, b'{"now":[],"last":[]}'))  # late
    await asyncio.sleep(0.01)
    assert not worker._awaited


async def test_a_supervisor_that_is_gone_is_not_waited_for(line: Line) -> None:
    worker, _, writer = line
    waiting = asyncio.create_task(worker.gather())
    await asyncio.sleep(0)
    writer.close()
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable):
            await waiting
    await lost(worker)
    with pytest.raises(Unavailable):
        await worker.gather()


async def test_a_line_nobody_attended_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Unavailable):
        await FiguresLine(ours).gather()
