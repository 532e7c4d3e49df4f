"""A second replica beside a silent one: who answers, who is closed, and what is told of both."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from proxy.errors import GatewayError, Unavailable
from proxy.routing.breaker import State
from proxy.routing.failure_kind import FailureKind
from proxy.routing.retry_budget import LEAST
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome
from proxy.upstream.hedge import Race, hedged
from tests.support.dispatching import Gateway, dispatching, replicated, request_of
from tests.support.memory_line import Clock, Heard, turns
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    Peer,
    Script,
    answer,
    answering,
    chunk,
    content,
    saying,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

PATIENCE_S = 10.0
HEDGE = ", hedge: 10ms, breaker: {failures: 1}"
HELLO = OK_EVENTS + chunk(ROLE + content("hello") + DONE) + LAST_CHUNK


# ---- two attempts, whatever they are ----


@dataclass(frozen=True)
class Came:
    """What an attempt came to."""

    kind: FailureKind | None = None


WELL, LOST, REFUSED = Came(), Came(FailureKind.BROKEN), Came(FailureKind.REJECTED)


class Attempt:
    """An attempt that comes to what the test says."""

    def __init__(self) -> None:
        self.result: asyncio.Future[Came] = asyncio.get_running_loop().create_future()
        self.cancelled = False

    async def run(self) -> Came:
        try:
            return await self.result
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Two:
    """Two attempts in a hedge of a second."""

    def __init__(self) -> None:
        self.first, self.second = Attempt(), Attempt()
        self.begun = 0
        self.failed: list[Came] = []
        self.task = asyncio.create_task(hedged(self.first.run(), self._begin, 1.0, self.failed.append))

    def _begin(self) -> Coroutine[None, None, Came] | None:
        self.begun += 1
        return self.second.run()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_nobody_else_is_asked_before_its_time(clock: Clock) -> None:
    two = Two()
    await clock.advance(0.99)
    assert two.begun == 0
    two.first.result.set_result(WELL)
    assert await two.task is WELL
    await clock.advance(5.0)
    assert two.begun == 0


async def test_the_first_answer_counts_and_the_other_is_cancelled(clock: Clock) -> None:
    for winner in ("first", "second"):
        two = Two()
        await turns()
        await clock.advance(1.01)
        assert two.begun == 1
        getattr(two, winner).result.set_result(WELL)
        assert await two.task is WELL
        assert (two.first.cancelled, two.second.cancelled) == (winner == "second", winner == "first")


async def test_a_failure_waits_for_the_other(clock: Clock) -> None:
    two = Two()
    await turns()
    await clock.advance(1.01)
    two.first.result.set_result(LOST)
    await turns()
    assert not two.task.done()
    assert two.failed == [LOST]
    two.second.result.set_result(WELL)
    assert await two.task is WELL


async def test_of_two_failures_the_last_is_what_it_came_to(clock: Clock) -> None:
    two = Two()
    await turns()
    await clock.advance(1.01)
    last = Came(FailureKind.SILENT)
    two.second.result.set_result(LOST)
    await turns()
    two.first.result.set_result(last)
    assert await two.task is last
    assert two.failed == [LOST]


async def test_two_that_fail_at_once_are_told_of_one_each(clock: Clock) -> None:
    two = Two()
    await turns()
    await clock.advance(1.01)
    two.first.result.set_result(LOST)
    two.second.result.set_result(LOST)
    assert await two.task is LOST
    assert two.failed == [LOST]


async def test_what_nobody_else_would_answer_otherwise_is_the_last_word(clock: Clock) -> None:
    two = Two()
    await turns()
    await clock.advance(1.01)
    two.first.result.set_result(REFUSED)
    assert await two.task is REFUSED
    assert two.second.cancelled


@pytest.mark.parametrize("after_s", [0.5, 1.5])
async def test_cancelling_cancels_both_and_waits_for_them(after_s: float, clock: Clock) -> None:
    two = Two()
    await turns()
    await clock.advance(after_s)
    two.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await two.task
    assert (two.first.cancelled, two.second.cancelled) == (True, after_s > 1)


async def test_what_either_raises_ends_both(clock: Clock) -> None:
    two = Two()
    await turns()
    await clock.advance(1.01)
    two.first.result.set_exception(Unavailable("draining"))
    with pytest.raises(Unavailable):
        await two.task
    assert two.second.cancelled


# ---- one stream ----


class Runner:
    """An exchange that only notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def outrun(self) -> None:
        self.done.append("outrun")

    def pause(self) -> None:
        self.done.append("pause")

    def resume(self) -> None:
        self.done.append("resume")

    def interrupt(self, error: GatewayError) -> None:
        self.done.append(error.message)

    def close(self) -> None:
        self.done.append("close")


def test_the_winner_is_the_streams_source_and_the_other_is_closed_in_the_same_call() -> None:
    stream = Stream()
    race, one, other = Race(stream), Runner(), Runner()
    race.enter(one)
    race.enter(other)
    race.won_by(other)
    race.won_by(one)
    assert (race.won, one.done, other.done) == (True, ["outrun"], [])
    stream.cancel()
    assert other.done == ["close"]


def test_until_then_both_are_interrupted_and_closed() -> None:
    for end, done in (("interrupt", "enough"), ("cancel", "close")):
        stream = Stream()
        race, one, other = Race(stream), Runner(), Runner()
        race.enter(one)
        race.enter(other)
        if end == "interrupt":
            stream.interrupt(Unavailable("enough"))
        else:
            stream.cancel()
        assert one.done == other.done == [done]


def test_who_comes_too_late_is_not_let_in() -> None:
    race = Race(Stream())
    one = Runner()
    race.enter(one)
    race.won_by(one)
    with pytest.raises(asyncio.CancelledError):
        race.enter(Runner())


# ---- two replicas ----


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with dispatching() as there:
        yield there


def waiting(asked: asyncio.Event, gone: asyncio.Event, *said: bytes) -> Script:
    """Says this much, then nothing; `gone` when the gateway has closed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*said)
        asked.set()
        await peer.closed()
        gone.set()

    return script


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("said", [[], [OK_EVENTS]], ids=["no head", "no event"])
async def test_a_silent_replica_is_outrun(said: list[bytes], gateway: Gateway, tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    async with scripted_upstream(waiting(asked, gone, *said)) as slow, scripted_upstream(answering(HELLO)) as quick:
        route = replicated(tmp_path, slow.url, quick.url, settings=HEDGE)
        heard = await gateway.heard(route)
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    assert (heard.wire, heard.ends) == (ROLE + content("hello") + DONE, [None])
    assert (gateway.record.attempts, gateway.record.replica, gateway.record.attempted) == (2, 1, [])
    assert [each.in_flight for each in route.replicas] == [0, 0]


async def test_the_loser_does_not_count_as_a_failure_but_as_slow(gateway: Gateway, tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    async with scripted_upstream(waiting(asked, gone)) as slow, scripted_upstream(answering(HELLO)) as quick:
        route = replicated(tmp_path, slow.url, quick.url, settings=HEDGE)
        await gateway.heard(route)
    now = asyncio.get_running_loop().time()
    assert [each.standing.breaker_state(now) for each in route.replicas] == [State.CLOSED, State.CLOSED]
    slow_s, quick_s = (each.standing.first_token.value(now) for each in route.replicas)
    assert slow_s > quick_s


async def test_the_first_one_may_still_win(gateway: Gateway, tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def late(peer: Peer) -> None:
        await peer.request()
        await asked.wait()
        await peer.send(HELLO)

    async with scripted_upstream(late) as first, scripted_upstream(waiting(asked, gone)) as second:
        heard = await gateway.heard(replicated(tmp_path, first.url, second.url, settings=HEDGE))
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    assert heard.wire == ROLE + content("hello") + DONE
    assert (gateway.record.attempts, gateway.record.replica) == (2, 0)
    gateway.record.end_attempt(Outcome.OK)
    assert gateway.record.attempted == [("chat", 0, Outcome.OK)]


async def test_a_replica_that_answers_in_time_is_alone(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as one, scripted_upstream(answering(HELLO)) as other:
        await gateway.heard(replicated(tmp_path, one.url, other.url, settings=", hedge: 60s"))
        assert (one.connections, other.connections, gateway.record.attempts) == (1, 0, 1)


async def test_a_failure_beside_a_silence_leaves_the_silent_one_to_answer(gateway: Gateway, tmp_path: Path) -> None:
    failed = asyncio.Event()

    async def late(peer: Peer) -> None:
        await peer.request()
        await failed.wait()
        await peer.send(HELLO)

    async with scripted_upstream(late) as slow, scripted_upstream(answering(answer(500, b"{}"))) as bad:
        route = replicated(tmp_path, slow.url, bad.url, settings=HEDGE)
        task = asyncio.create_task(gateway.heard(route))
        await until(lambda: gateway.record.attempted == [("chat", 1, Outcome.STATUS)])
        failed.set()
        heard = await task
    assert heard.wire == ROLE + content("hello") + DONE
    assert (gateway.record.attempts, gateway.record.replica) == (2, 0)


async def test_when_both_fail_a_third_is_tried(gateway: Gateway, tmp_path: Path) -> None:
    async with (
        scripted_upstream(saying(end="stall")) as silent,
        scripted_upstream(answering(answer(503, b"{}"))) as bad,
        scripted_upstream(answering(HELLO)) as good,
    ):
        settings = ", hedge: 10ms, timeouts: {first_token: 100ms}"
        route = replicated(tmp_path, silent.url, bad.url, good.url, settings=settings)
        heard = await gateway.heard(route)
    assert heard.wire == ROLE + content("hello") + DONE
    assert gateway.record.attempts == 3
    assert sorted(each.outcome for each in gateway.record.attempted) == [Outcome.STATUS, Outcome.TIMEOUT]


async def test_when_all_fail_the_last_is_told(gateway: Gateway, tmp_path: Path) -> None:
    bad = saying(end="stall")
    async with scripted_upstream(bad) as one, scripted_upstream(answering(answer(503, b"{}"))) as other:
        settings = ", hedge: 10ms, timeouts: {first_token: 100ms}, retry: {attempts: 2}"
        with pytest.raises(GatewayError) as raised:
            await gateway.open(replicated(tmp_path, one.url, other.url, settings=settings))
    assert raised.value.code == "first_token_timeout"
    assert (gateway.record.attempts, gateway.record.replica) == (2, 0)


@pytest.mark.parametrize(
    "settings", [", hedge: 10ms, retry: {attempts: 1}", ", hedge: none"], ids=["one attempt", "no hedge"]
)
async def test_there_may_be_no_second(settings: str, gateway: Gateway, tmp_path: Path) -> None:
    late = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await late.wait()
        await peer.send(HELLO)

    async with scripted_upstream(script) as one, scripted_upstream(answering(HELLO)) as other:
        route = replicated(tmp_path, one.url, other.url, settings=settings)
        task = asyncio.create_task(gateway.heard(route))
        await until(lambda: one.requests != [])
        await asyncio.sleep(0.02)
        late.set()
        await task
        assert (other.connections, gateway.record.attempts) == (0, 1)


async def test_a_whole_answer_is_not_hedged(gateway: Gateway, tmp_path: Path) -> None:
    late = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await late.wait()
        await peer.send(answer(200, b"{}"))

    async with scripted_upstream(script) as one, scripted_upstream(answering(HELLO)) as other:
        route = replicated(tmp_path, one.url, other.url, settings=HEDGE)
        task = asyncio.create_task(gateway.open(route, request_of(b'{"model":"chat"}')))
        await until(lambda: one.requests != [])
        await asyncio.sleep(0.02)
        late.set()
        assert (await task).status == 200
        assert other.connections == 0


async def test_hedges_draw_on_the_budget(gateway: Gateway, tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    async with scripted_upstream(waiting(asked, gone)) as slow, scripted_upstream(answering(HELLO)) as quick:
        settings = ", hedge: 10ms, breaker: none, timeouts: {first_token: 60ms}, retry: {attempts: 2}"
        for number in range(LEAST):
            await gateway.heard(replicated(tmp_path, slow.url, quick.url, settings=settings))
            assert gateway.record.attempts == 2, number
        with pytest.raises(GatewayError):
            await gateway.heard(replicated(tmp_path, slow.url, quick.url, settings=settings))
        assert gateway.record.attempts == 1


async def test_a_client_that_leaves_closes_both(gateway: Gateway, tmp_path: Path) -> None:
    there = [(asyncio.Event(), asyncio.Event()) for _ in range(2)]
    async with scripted_upstream(waiting(*there[0])) as one, scripted_upstream(waiting(*there[1])) as other:
        route = replicated(tmp_path, one.url, other.url, settings=HEDGE)
        task = asyncio.create_task(gateway.open(route))
        async with asyncio.timeout(PATIENCE_S):
            for asked, _ in there:
                await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [each.in_flight for each in route.replicas] == [0, 0]
            for _, gone in there:
                await gone.wait()


async def test_an_interrupt_ends_both(gateway: Gateway, tmp_path: Path) -> None:
    there = [(asyncio.Event(), asyncio.Event()) for _ in range(2)]
    async with scripted_upstream(waiting(*there[0])) as one, scripted_upstream(waiting(*there[1])) as other:
        route = replicated(tmp_path, one.url, other.url, settings=HEDGE)
        task = asyncio.create_task(gateway.open(route))
        async with asyncio.timeout(PATIENCE_S):
            for asked, _ in there:
                await asked.wait()
            gateway.stream.interrupt(Unavailable("enough", code="draining"))
            with pytest.raises(Unavailable):
                await task
            for _, gone in there:
                await gone.wait()
    assert [each.in_flight for each in route.replicas] == [0, 0]


async def test_two_that_speak_in_the_same_turn_do_not_both_go_on(gateway: Gateway, tmp_path: Path) -> None:
    both = [asyncio.Event(), asyncio.Event()]

    def script_of(mine: asyncio.Event, text: str) -> Script:
        async def script(peer: Peer) -> None:
            await peer.request()
            mine.set()
            for each in both:
                await each.wait()
            await peer.send(OK_EVENTS + chunk(content(text)), chunk(content(text) + DONE) + LAST_CHUNK)

        return script

    async with (
        scripted_upstream(script_of(both[0], "a")) as one,
        scripted_upstream(script_of(both[1], "b")) as other,
    ):
        route = replicated(tmp_path, one.url, other.url, settings=HEDGE)
        await gateway.open(route)
        heard = Heard(gateway.stream)
        await heard.over.wait()
    assert heard.wire in (content("a") * 2 + DONE, content("b") * 2 + DONE)
    assert [each.in_flight for each in route.replicas] == [0, 0]


async def test_a_client_that_leaves_in_the_turn_in_which_one_wins_leaves_nothing_open(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    won_by = Race.won_by

    def won_too_late(race: Race, winner: Runner) -> None:
        won_by(race, winner)
        task.cancel()

    monkeypatch.setattr(Race, "won_by", won_too_late)
    async with scripted_upstream(waiting(asked, gone, OK_EVENTS, chunk(content("a")))) as upstream:
        route = replicated(tmp_path, upstream.url, settings=HEDGE)
        task = asyncio.create_task(gateway.open(route))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert route.replicas[0].in_flight == 0
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
