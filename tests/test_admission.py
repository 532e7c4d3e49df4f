"""Who is taken on at once, who waits for a place and for how long, and who is told to come back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.access.limits import KeyRules
from proxy.access.refusal import Refusal
from proxy.admission import Admission, OnQueued, Stay
from proxy.errors import GatewayError, TooManyRequests, Unavailable
from proxy.request import RequestBody
from proxy.streams.stream import Stream
from proxy.telemetry.record import Phase, RequestRecord
from tests.support.dispatching import replicated
from tests.support.memory_line import Clock, turns

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.routing.table import Route

BODY = RequestBody.parse(b'{"model":"chat","messages":[{"role":"user","content":"%b"}]}' % (b"word " * 80))
DRAINING = Unavailable("shutting down", code="draining")


def limited(tmp_path: Path, limits: str) -> Route:
    return replicated(tmp_path, "http://gpu-1", settings=f", limits: {{{limits}}}")


class Asking:
    """One request of `key`, that asks for a place at a route."""

    def __init__(self, admission: Admission, key: str | None = None) -> None:
        self.record = RequestRecord("req_1", "POST", "/v1/chat/completions", 0.0)
        self.record.key = key
        self.stream = Stream()
        self.stay: Stay = admission.begin(BODY, self.record)

    async def admitted(self, route: Route, on_queued: OnQueued | None = None) -> Refusal | None:
        ticket = self.stay.enter(route)
        return None if ticket is None else await self.stay.wait(ticket, self.stream, on_queued)

    def waiting(self, route: Route, on_queued: OnQueued | None = None) -> asyncio.Task[Refusal | None]:
        return asyncio.create_task(self.admitted(route, on_queued))


async def refusal_of(waiting: asyncio.Task[Refusal | None]) -> Refusal:
    refusal = await waiting
    assert refusal is not None
    return refusal


# ---- a route's places ----


async def test_without_limits_everybody_is_admitted_at_once(tmp_path: Path) -> None:
    admission, route = Admission(), replicated(tmp_path, "http://gpu-1")
    for _ in range(100):
        assert Asking(admission).stay.enter(route) is None
    assert route.limiter.in_flight == 100


async def test_who_finds_no_place_waits_for_one_and_the_record_says_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    admission, route = Admission(), limited(tmp_path, "streams: 1")
    first, second = Asking(admission), Asking(admission)
    assert await first.admitted(route) is None
    waiting = second.waiting(route)
    await turns()
    await clock.advance(1.5)
    assert not waiting.done()
    assert (second.record.phase, route.limiter.waiting) == (Phase.QUEUE, 1)
    first.stay.end(0)
    assert await waiting is None
    assert (second.record.queue_ms, first.record.queue_ms) == (1500.0, 0.0)
    second.stay.end(0)
    assert (route.limiter.in_flight, route.limiter.waiting) == (0, 0)


async def test_a_wait_that_takes_too_long_ends_with_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    admission, route = Admission(), limited(tmp_path, "streams: 1, queue_timeout: 2s")
    assert await Asking(admission).admitted(route) is None
    second = Asking(admission)
    waiting = second.waiting(route)
    await turns()
    await clock.advance(1.9)
    assert not waiting.done()
    await clock.advance(0.2)
    refusal = await refusal_of(waiting)
    assert (refusal.code, refusal.status) == ("queue_timeout", 503)
    assert refusal.retry_after_s >= 1
    second.stay.end(0)
    assert (route.limiter.in_flight, route.limiter.waiting) == (1, 0)


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    admission, route = Admission(), limited(tmp_path, "streams: 1, queue: 0")
    assert await Asking(admission).admitted(route) is None
    refusal = await Asking(admission).admitted(route)
    assert refusal is not None
    assert (refusal.code, refusal.status) == ("queue_full", 429)


async def test_one_put_out_of_a_full_queue_is_woken_up_and_told(tmp_path: Path) -> None:
    admission, route = Admission(), limited(tmp_path, "streams: 1, queue: 3")
    assert await Asking(admission, "greedy").admitted(route) is None
    greedy = [Asking(admission, "greedy").waiting(route) for _ in range(3)]
    await turns()
    modest = Asking(admission, "modest").waiting(route)
    await turns()
    assert [waiting.done() for waiting in (*greedy, modest)] == [False, False, True, False]
    assert (await refusal_of(greedy[2])).code == "queue_full"
    for waiting in (*greedy, modest):
        waiting.cancel()


async def test_keys_are_served_in_turn(tmp_path: Path) -> None:
    admission, route = Admission(), limited(tmp_path, "streams: 1")
    at_work = Asking(admission, "greedy")
    assert await at_work.admitted(route) is None
    asking = [Asking(admission, key) for key in ("greedy", "greedy", "modest")]
    waiting = []
    for each in asking:
        waiting.append(each.waiting(route))
        await turns()
    at_work.stay.end(0)
    await waiting[0]
    asking[0].stay.end(0)
    await waiting[2]
    assert not waiting[1].done()
    asking[2].stay.end(0)
    await waiting[1]


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
async def test_a_request_that_is_given_up_leaves_the_queue_at_once(how: str, tmp_path: Path) -> None:
    admission, route = Admission(), limited(tmp_path, "streams: 1")
    assert await Asking(admission).admitted(route) is None
    second = Asking(admission)
    waiting = second.waiting(route)
    await turns()
    if how == "cancelled":
        waiting.cancel()
    else:
        second.stream.interrupt(DRAINING)
    with pytest.raises((asyncio.CancelledError, Unavailable)):
        await waiting
    second.stay.end(0)
    assert (route.limiter.in_flight, route.limiter.waiting) == (1, 0)


async def test_a_place_that_comes_as_its_client_leaves_goes_to_the_next(tmp_path: Path) -> None:
    admission, route = Admission(), limited(tmp_path, "streams: 1")
    first, second, third = Asking(admission), Asking(admission), Asking(admission)
    assert await first.admitted(route) is None
    waiting, after = second.waiting(route), third.waiting(route)
    await turns()
    first.stay.end(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    second.stay.end(0)
    assert await after is None


async def test_going_to_another_route_gives_up_the_place_at_the_first(tmp_path: Path) -> None:
    admission = Admission()
    one, other = limited(tmp_path, "streams: 1"), limited(tmp_path, "streams: 1")
    first, second = Asking(admission), Asking(admission)
    assert await first.admitted(one) is None
    waiting = second.waiting(one)
    await turns()
    assert await first.admitted(other) is None
    assert await waiting is None
    first.stay.end(0)
    assert (one.limiter.in_flight, other.limiter.in_flight) == (1, 0)


async def test_who_waits_is_told_its_place_whenever_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    admission, route = Admission(), limited(tmp_path, "streams: 1, queue_timeout: 5s")
    at_work = [Asking(admission) for _ in range(3)]
    waits = [asking.waiting(route) for asking in at_work]
    await turns()
    told: list[int] = []
    last = Asking(admission).waiting(route, lambda position, wait_s: told.append(position))
    await turns()
    assert told == [3]
    await clock.advance(1.1)
    assert told == [3]
    at_work[0].stay.end(0)
    await waits[1]
    await clock.advance(1.1)
    assert told == [3, 2]
    await clock.advance(1.1)
    await clock.advance(1.1)
    await clock.advance(1.1)
    assert (await refusal_of(last)).code == "queue_timeout"
    assert told == [3, 2]
    waits[2].cancel()


# ---- a key's limits ----


def refused(admission: Admission, key: str) -> GatewayError:
    with pytest.raises(TooManyRequests) as raised:
        Asking(admission, key)
    return raised.value


async def test_a_key_has_so_many_streams_at_once() -> None:
    admission = Admission({"web": KeyRules(streams=2)})
    first, _ = Asking(admission, "web"), Asking(admission, "web")
    error = refused(admission, "web")
    assert (error.status, error.code, error.retry_after_s) == (429, "too_many_streams", 1)
    first.stay.end(0)
    first.stay.end(0)
    Asking(admission, "web")
    assert refused(admission, "web").code == "too_many_streams"


async def test_a_key_has_so_many_requests_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    admission = Admission({"web": KeyRules(requests_per_minute=2)})
    for _ in range(2):
        Asking(admission, "web").stay.end(0)
    error = refused(admission, "web")
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", 30)
    await clock.advance(30.0)
    Asking(admission, "web").stay.end(0)


async def test_a_key_pays_for_the_tokens_its_answers_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    admission = Admission({"web": KeyRules(tokens_per_minute=600)})
    Asking(admission, "web").stay.end(700)
    error = refused(admission, "web")
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", 11)
    await clock.advance(11.0)
    Asking(admission, "web").stay.end(0)


async def test_what_cost_nothing_is_given_back_and_what_nobody_counted_is_not() -> None:
    admission = Admission({"web": KeyRules(tokens_per_minute=150)})
    for _ in range(20):
        Asking(admission, "web").stay.end(0)
    for _ in range(2):
        Asking(admission, "web").stay.end(None)  # about a hundred each
    assert refused(admission, "web").code == "rate_limit_exceeded"


async def test_one_keys_limits_are_not_anothers() -> None:
    admission = Admission({"web": KeyRules(streams=1)})
    Asking(admission, "web")
    Asking(admission, "other")
    Asking(admission, None)
    assert refused(admission, "web").code == "too_many_streams"
