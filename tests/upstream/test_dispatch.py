"""Which replica is asked, and who after it: what is tried a second time, and what is not."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import pytest

from proxy.errors import (
    FirstTokenTimeout,
    Unavailable,
    UpstreamInvalid,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from proxy.request import ProxyRequest
from proxy.routing.failure_kind import FailureKind
from proxy.routing.table import Route
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import Phase
from tests.support.dispatching import CHAT, Gateway, dispatching, failure, replicated, request_of, route_of
from tests.support.memory_line import Clock, Heard, turns
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    Peer,
    Script,
    ScriptedUpstream,
    answer,
    answering,
    chunk,
    content,
    event,
    saying,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with dispatching() as there:
        yield there


# ---- token counts ----

STREAM = b'{"model":"llama","stream":true}'
ASKING = b'{"stream_options":{"include_usage":true},"model":"llama","stream":true}'
REFUSAL = answer(400, b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}')
HELLO = OK_EVENTS + chunk(ROLE + content("hello") + DONE) + LAST_CHUNK


async def bodies_sent(gateway: Gateway, route: Route, upstream: ScriptedUpstream, request: ProxyRequest) -> list[bytes]:
    """What one request, of which a stream comes, has the replica read."""
    before = len(upstream.requests)
    assert (await gateway.open(route, request)).status == 200
    heard = Heard(gateway.stream)
    await heard.over.wait()
    assert heard.wire == ROLE + content("hello") + DONE
    assert route.replicas[0].in_flight == 0
    return [received.body for received in upstream.requests[before:]]


@pytest.mark.parametrize(
    ("raw", "path", "sent"),
    [
        (STREAM, CHAT, ASKING),
        (STREAM, "/v1/completions", ASKING),
        (STREAM, "/v1/responses", STREAM),
        (STREAM, "/v1/messages", STREAM),
        (STREAM, "/v1/of/no/known/protocol", STREAM),
        (ASKING, CHAT, ASKING),
        (b'{"model":"llama"}', CHAT, b'{"model":"llama"}'),
        (b'{"model":"llama","stream":true,"stream_options":[]}', CHAT, None),
        (b'{"model":"llama","stream":true,"stream_options":{"include_usage":"on"}}', CHAT, None),
    ],
)
async def test_a_replica_is_asked_for_usage_where_the_client_did_not(
    raw: bytes, path: str, sent: bytes | None, gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as upstream:
        await gateway.open(route_of(tmp_path, upstream.url), request_of(raw, path=path))
        assert [received.body for received in upstream.requests] == [raw if sent is None else sent]


def refusing(refusal: bytes) -> Script:
    """A server of old: a request with `stream_options` is refused."""

    async def script(peer: Peer) -> None:
        while True:
            refused = b"stream_options" in (await peer.request()).body
            await peer.send(refusal if refused else HELLO)

    return script


@pytest.mark.parametrize(
    "refusal", [REFUSAL, answer(422, b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"]}]}')]
)
async def test_a_server_that_refuses_stream_options_is_asked_again_without_and_then_no_more(
    refusal: bytes, gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(refusing(refusal)) as upstream:
        route = route_of(tmp_path, upstream.url)
        assert await bodies_sent(gateway, route, upstream, request_of(STREAM)) == [ASKING, STREAM]
        assert (gateway.record.attempts, route.replicas[0].takes_stream_options) == (2, False)
        assert await bodies_sent(gateway, route, upstream, request_of(STREAM)) == [STREAM]
        assert (gateway.record.attempts, upstream.connections) == (1, 1)


async def test_a_refusal_of_the_clients_own_stream_options_passes(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(refusing(REFUSAL)) as upstream:
        route = route_of(tmp_path, upstream.url)
        opening = await gateway.open(route, request_of(ASKING))
        assert (opening.status, opening.body) == (400, REFUSAL.partition(b"\r\n\r\n")[2])
        assert (gateway.record.attempts, route.replicas[0].takes_stream_options) == (1, True)


async def test_a_refusal_that_only_repeats_the_request_is_not_held_against_the_replica(
    gateway: Gateway, tmp_path: Path
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            received = await peer.request()
            await peer.send(answer(422, b'{"detail":"no messages","input":%b}' % received.body))

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        opening = await gateway.open(route, request_of(STREAM))
        assert (opening.status, opening.body) == (422, b'{"detail":"no messages","input":%b}' % STREAM)
        assert (gateway.record.attempts, route.replicas[0].takes_stream_options) == (2, True)


@pytest.mark.parametrize(
    "said", [answer(400, b'{"error":"no such model"}'), answer(500, b'{"error":"stream_options"}')]
)
async def test_any_other_refusal_passes_at_once(said: bytes, gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(said)) as upstream:
        opening = await gateway.open(route_of(tmp_path, upstream.url), request_of(STREAM))
        assert (opening.status, gateway.record.attempts) == (int(said[9:12]), 1)


# ---- a stale connection ----


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_stale_kept_connection_is_replaced_once(how: str, gateway: Gateway, tmp_path: Path) -> None:
    served = 0

    async def script(peer: Peer) -> None:
        nonlocal served
        served += 1
        await peer.request()
        await peer.send(answer(200, b'{"served":%d}' % served))
        await peer.request()  # on the kept connection: read, and never answered
        if how == "reset":
            peer.reset()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        assert (await gateway.open(route)).body == b'{"served":1}'
        assert gateway.record.attempts == 1
        assert (await gateway.open(route)).body == b'{"served":2}'
        assert (gateway.record.attempts, upstream.connections) == (2, 2)
        sent = b'{"stream_options":{"include_usage":true},"model":"llama","stream":true}'
        assert [received.body for received in upstream.requests] == [sent] * 3
        assert route.replicas[0].in_flight == 0


async def test_a_server_that_accepts_and_closes_is_not_asked_again(gateway: Gateway, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with scripted_upstream(script) as upstream:
        error = await failure(gateway, route_of(tmp_path, upstream.url))
        assert type(error) is UpstreamUnreachable
        assert (gateway.record.attempts, upstream.connections) == (1, 1)


async def test_a_fresh_connection_that_fails_too_is_the_end(gateway: Gateway, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if upstream.connections == 1:
            await peer.send(answer(200, b"{}"))
            await peer.request()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        await gateway.open(route)
        error = await failure(gateway, route)
        assert type(error) is UpstreamUnreachable
        assert (gateway.record.attempts, upstream.connections) == (2, 2)


async def test_a_kept_connection_that_died_after_a_byte_is_not_replaced(gateway: Gateway, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(200, b"{}"))
        await peer.request()
        await peer.send(b"HTTP/1.1 200")

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        await gateway.open(route)
        await failure(gateway, route)
        assert (gateway.record.attempts, upstream.connections) == (1, 1)


async def test_a_stale_connection_is_an_attempt_of_its_own_and_the_next_is_still_open(
    gateway: Gateway, tmp_path: Path
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(200, b"{}"))
        await peer.request()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        await gateway.open(route)
        await gateway.open(route)
    assert gateway.record.attempted == [("chat", 0, Outcome.RESET)]
    gateway.record.end_attempt(Outcome.OK)
    assert gateway.record.attempted[1:] == [("chat", 0, Outcome.OK)]


@pytest.mark.parametrize(
    ("body", "said", "phase"),
    [
        (b'{"model":"chat","stream":true}', [], Phase.HEADERS),
        (b'{"model":"chat","stream":true}', [OK_EVENTS], Phase.FIRST_EVENT),
        (b'{"model":"chat"}', [], Phase.HEADERS),
        (b'{"model":"chat"}', [answer(200, b"{}")[:-1]], Phase.RESPONSE),
    ],
)
async def test_how_far_a_request_came_is_noted(
    body: bytes, said: list[bytes], phase: Phase, gateway: Gateway, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*said)
        asked.set()
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        task = asyncio.create_task(gateway.open(route_of(tmp_path, upstream.url), request_of(body)))
        async with asyncio.timeout(5):
            await asked.wait()
            while gateway.record.phase is not phase:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (gateway.record.phase, gateway.record.attempts, gateway.record.attempted) == (phase, 1, [])


# ---- several replicas ----

ERROR = event(b'{"error":{"message":"overloaded"}}')
TOO_LONG = answer(400, b'{"error":{"code":"context_length_exceeded","message":"no"}}')
FAILING = {
    "closes at once": (saying(), Outcome.RESET),
    "resets": (saying(end="reset"), Outcome.RESET),
    "breaks off in its head": (saying(b"HTTP/1.1 200"), Outcome.RESET),
    "breaks off before content": (saying(OK_EVENTS, chunk(ROLE), end="reset"), Outcome.TRUNCATED),
    "breaks off in a whole answer": (saying(answer(200, b"{}")[:-1]), Outcome.TRUNCATED),
    "ends before content": (saying(OK_EVENTS, chunk(ROLE), LAST_CHUNK), Outcome.TRUNCATED),
    "500": (answering(answer(500, b"{}")), Outcome.STATUS),
    "502": (answering(answer(502, b"{}")), Outcome.STATUS),
    "503": (answering(answer(503, b"{}", b"Retry-After: 60")), Outcome.STATUS),
    "504": (answering(answer(504, b"{}")), Outcome.STATUS),
    "429": (answering(answer(429, b"{}")), Outcome.STATUS),
    "error event": (answering(OK_EVENTS, chunk(ROLE + ERROR), LAST_CHUNK), Outcome.ERROR_EVENT),
    "error under 200": (answering(answer(200, b'{"error":{"message":"no"}}')), Outcome.ERROR_EVENT),
    "silent": (saying(end="stall"), Outcome.TIMEOUT),
    "silent after its head": (saying(OK_EVENTS, end="stall"), Outcome.TIMEOUT),
}
"""What a first replica does, by name: its script, and what came of the attempt."""
SOON = ", timeouts: {first_token: 150ms}"


@pytest.mark.parametrize("failing", FAILING)
async def test_what_fails_before_content_is_tried_at_another_replica(
    failing: str, gateway: Gateway, tmp_path: Path
) -> None:
    script, outcome = FAILING[failing]
    async with scripted_upstream(script) as bad, scripted_upstream(answering(HELLO)) as good:
        route = replicated(tmp_path, bad.url, good.url, settings=SOON)
        heard = await gateway.heard(route)
    assert heard.wire == ROLE + content("hello") + DONE
    assert heard.ends == [None]
    assert (gateway.record.attempts, gateway.record.replica) == (2, 1)
    assert gateway.record.attempted == [("chat", 0, outcome)]
    assert [replica.in_flight for replica in route.replicas] == [0, 0]


async def test_a_refused_connection_is_tried_at_another_replica(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering()) as gone:
        pass
    async with scripted_upstream(answering(HELLO)) as good:
        heard = await gateway.heard(replicated(tmp_path, gone.url, good.url))
    assert heard.wire == ROLE + content("hello") + DONE
    assert gateway.record.attempted == [("chat", 0, Outcome.REFUSED)]


@pytest.mark.parametrize(
    "said",
    [answer(400, b'{"error":"x"}'), answer(401, b"{}"), answer(404, b"{}"), answer(422, b"{}"), TOO_LONG],
    ids=["400", "401", "404", "422", "too long"],
)
async def test_what_is_wrong_with_the_request_is_asked_nobody_else(
    said: bytes, gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(answering(said)) as one, scripted_upstream(answering(HELLO)) as other:
        opening = await gateway.open(replicated(tmp_path, one.url, other.url))
        assert (opening.status, opening.body) == (int(said[9:12]), said.partition(b"\r\n\r\n")[2])
        assert (gateway.record.attempts, other.connections) == (1, 0)


@pytest.mark.parametrize("said", [b"garbage\r\n", answer(302, b"", b"Location: http://elsewhere")])
async def test_an_invalid_answer_is_asked_nobody_else(said: bytes, gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(saying(said)) as one, scripted_upstream(answering(HELLO)) as other:
        assert type(await failure(gateway, replicated(tmp_path, one.url, other.url))) is UpstreamInvalid
        assert (gateway.record.attempts, other.connections) == (1, 0)


async def test_after_content_nothing_is_tried_again(gateway: Gateway, tmp_path: Path) -> None:
    breaking = saying(OK_EVENTS, chunk(content("a")), end="reset")
    async with scripted_upstream(breaking) as one, scripted_upstream(answering(HELLO)) as other:
        heard = await gateway.heard(replicated(tmp_path, one.url, other.url))
        assert heard.wire == content("a")
        [error] = heard.ends
        assert type(error) is UpstreamTruncated
        assert (gateway.record.attempts, other.connections) == (1, 0)


async def test_each_attempt_has_a_watcher_of_its_own(gateway: Gateway, tmp_path: Path) -> None:
    """A first replica's error must not be held against the second one's answer."""
    usage = event(b'{"choices":[],"usage":{"prompt_tokens":99,"completion_tokens":99}}')
    failing = answering(OK_EVENTS, chunk(ROLE + usage + ERROR), LAST_CHUNK)
    async with scripted_upstream(failing) as bad, scripted_upstream(answering(HELLO)) as good:
        await gateway.heard(replicated(tmp_path, bad.url, good.url))
    assert gateway.opened is not None
    watcher = gateway.opened.watcher
    assert (watcher.failure, watcher.complete, watcher.tokens_in) == (None, True, None)


# ---- the same replica again ----


async def test_without_another_the_same_replica_is_tried_again_up_to_its_attempts(
    gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(answering(answer(500, b'{"no":1}'))) as upstream:
        opening = await gateway.open(replicated(tmp_path, upstream.url, settings=", retry: {attempts: 4}"))
        assert (opening.status, opening.body) == (500, b'{"no":1}')
        assert (gateway.record.attempts, len(upstream.requests)) == (4, 4)
        assert gateway.opened is not None
        assert gateway.opened.kind is FailureKind.SERVER_ERROR


async def test_every_replica_is_tried_before_one_is_tried_twice(gateway: Gateway, tmp_path: Path) -> None:
    failing = answering(answer(500, b"{}"))
    async with scripted_upstream(failing) as one, scripted_upstream(failing) as other:
        await gateway.open(replicated(tmp_path, one.url, other.url))
        assert [attempt.replica for attempt in gateway.record.attempted][:2] == [0, 1]
        assert gateway.record.attempts == 3


async def test_the_last_failure_is_the_one_that_is_told(gateway: Gateway, tmp_path: Path) -> None:
    failing = answering(answer(500, b"{}"))
    async with scripted_upstream(failing) as one, scripted_upstream(saying(end="reset")) as other:
        error = await failure(gateway, replicated(tmp_path, one.url, other.url, settings=", retry: {attempts: 2}"))
    assert type(error) is UpstreamUnreachable
    assert (gateway.record.attempts, gateway.record.replica) == (2, 1)


async def test_a_silent_replica_is_never_asked_again(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(saying(end="stall")) as upstream:
        assert type(await failure(gateway, replicated(tmp_path, upstream.url, settings=SOON))) is FirstTokenTimeout
        assert gateway.record.attempts == 1


@pytest.mark.parametrize(
    ("retry_after", "attempts"), [(b"Retry-After: 0", 3), (b"Retry-After: 6", 1), (b"X-None: 0", 1)]
)
async def test_one_that_is_asked_too_much_is_asked_again_only_as_it_says(
    retry_after: bytes, attempts: int, gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(answering(answer(429, b"{}", retry_after))) as upstream:
        opening = await gateway.open(replicated(tmp_path, upstream.url))
        assert (opening.status, gateway.record.attempts) == (429, attempts)


async def test_the_same_replica_is_tried_again_after_a_backoff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with dispatching(Random(1)) as gateway, scripted_upstream(answering(answer(500, b"{}"))) as upstream:
        route = replicated(tmp_path, upstream.url, settings=", retry: {attempts: 2}")
        clock = Clock(monkeypatch)
        task = asyncio.create_task(gateway.open(route))
        while len(gateway.record.attempted) < 1:
            await asyncio.sleep(0)
        await clock.advance(0.12)
        assert len(upstream.requests) == 1
        await clock.advance(0.13)
        assert (await task).status == 500
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
async def test_a_backoff_ends_with_its_request(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with dispatching(Random(1)) as gateway, scripted_upstream(answering(answer(500, b"{}"))) as upstream:
        route = replicated(tmp_path, upstream.url)
        Clock(monkeypatch)
        task = asyncio.create_task(gateway.open(route))
        while len(gateway.record.attempted) < 1:
            await asyncio.sleep(0)
        error = Unavailable("shutting down", code="draining")
        if how == "cancelled":
            task.cancel()
        else:
            gateway.stream.interrupt(error)
        with pytest.raises((asyncio.CancelledError, Unavailable)):
            await task
        assert (gateway.record.attempts, gateway.record.phase) == (1, Phase.CONNECT)


async def test_all_requests_together_have_a_budget_for_tries(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(500, b"{}"))) as upstream:
        route = replicated(tmp_path, upstream.url, settings=", breaker: none, retry: {attempts: 3}")
        for _ in range(12):
            await gateway.open(route)
        assert len(upstream.requests) == 12 + 10


# ---- who may be asked ----

ONE_FAILURE = ", retry: {attempts: 1}, breaker: {failures: 1, open_for: 10s}"


async def test_a_replica_whose_breaker_is_open_is_not_asked(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(500, b"{}"))) as bad, scripted_upstream(answering(HELLO)) as good:
        route = replicated(tmp_path, bad.url, good.url, settings=ONE_FAILURE)
        assert (await gateway.open(route)).status == 500
        for _ in range(3):
            await gateway.heard(route)
            assert (gateway.record.attempts, gateway.record.replica) == (1, 1)
        assert len(bad.requests) == 1


async def test_where_no_replica_may_be_asked_the_client_is_told_when_to_come_back(
    gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(answering(answer(500, b"{}"))) as upstream:
        route = replicated(tmp_path, upstream.url, settings=ONE_FAILURE)
        await gateway.open(route)
        with pytest.raises(Unavailable) as raised:
            await gateway.open(route)
        assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (503, "no_replica_available", 10)
        assert raised.value.message == 'route "chat": no replica available (1 open); retry after 10 s'
        assert (gateway.record.attempts, len(upstream.requests)) == (0, 1)


async def test_a_failure_that_opens_the_last_breaker_is_told_as_it_is(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(500, b"{}"))) as upstream:
        settings = ", breaker: {failures: 1}, retry: {attempts: 3}"
        assert (await gateway.open(replicated(tmp_path, upstream.url, settings=settings))).status == 500
        assert gateway.record.attempts == 1


async def test_half_open_one_request_goes_through_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if len(upstream.requests) == 1:
            await peer.send(answer(500, b"{}"))
        else:
            await go_on.wait()
            await peer.send(HELLO)

    clock = Clock(monkeypatch)
    async with dispatching() as gateway, scripted_upstream(script) as upstream:
        route = replicated(tmp_path, upstream.url, settings=ONE_FAILURE)
        await gateway.open(route)
        await clock.advance(1.0)
        with pytest.raises(Unavailable, match=r"1 open\); retry after 9 s"):
            await gateway.open(route)
        await clock.advance(9.5)
        probe = asyncio.create_task(gateway.open(route))
        await turns()
        with pytest.raises(Unavailable, match="1 half-open"):
            await gateway.open(route)
        go_on.set()
        assert (await probe).status == 200
        assert route.replicas[0].standing.available(asyncio.get_running_loop().time())


async def test_a_replica_that_is_down_is_not_asked(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as one, scripted_upstream(answering(HELLO)) as other:
        route = replicated(tmp_path, one.url, other.url, settings=", health: {fall: 1}")
        route.replicas[0].standing.probed(well=False, now=0.0)
        for _ in range(3):
            await gateway.heard(route)
        assert (one.connections, len(other.requests)) == (0, 3)


async def test_a_replica_that_was_asked_too_much_comes_last(gateway: Gateway, tmp_path: Path) -> None:
    busy = answering(answer(429, b"{}", b"Retry-After: 30"))
    async with scripted_upstream(busy) as one, scripted_upstream(answering(HELLO)) as other:
        route = replicated(tmp_path, one.url, other.url)
        for _ in range(3):
            await gateway.heard(route)
        assert (len(one.requests), len(other.requests)) == (1, 3)


async def test_the_balancer_is_told_who_asks(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as one, scripted_upstream(answering(HELLO)) as other:
        route = replicated(tmp_path, one.url, other.url, balance="sticky")
        seen = set()
        for session in "abcdefgh":
            asked = request_of(STREAM, ("x-penstock-session", session))
            for _ in range(2):
                await gateway.open(route, asked)
                await Heard(gateway.stream).over.wait()
                seen.add((session, gateway.record.replica))
        assert len(seen) == 8
        assert {replica for _, replica in seen} == {0, 1}


async def test_a_key_keeps_to_its_replica(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(HELLO)) as one, scripted_upstream(answering(HELLO)) as other:
        route = replicated(tmp_path, one.url, other.url, balance="{sticky: key}")
        seen = set()
        for key in "abcdefgh":
            for _ in range(2):
                await gateway.open(route, key=key)
                await Heard(gateway.stream).over.wait()
                seen.add((key, gateway.record.replica))
        assert len(seen) == 8
        assert {replica for _, replica in seen} == {0, 1}
