"""One attempt at one replica: what is opened, what goes wrong, and who is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.errors import (
    FirstTokenTimeout,
    GatewayError,
    Unavailable,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from proxy.routing.breaker import State
from proxy.routing.failure_kind import FailureKind
from proxy.routing.standing import Standing, Visit
from proxy.routing.table import Route
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import Phase
from tests.support.dispatching import CHAT, Gateway, dispatching, failure, request_of, route_of
from tests.support.memory_line import Heard, turns
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


async def test_an_answer_flows_into_the_stream(gateway: Gateway, tmp_path: Path) -> None:
    reads = [chunk(ROLE), chunk(content("a")), chunk(content("b") + DONE), LAST_CHUNK]
    async with scripted_upstream(answering(OK_EVENTS, *reads)) as upstream:
        route = route_of(tmp_path, upstream.url)
        heard = await gateway.heard(route)
        assert heard.wire == ROLE + content("a") + content("b") + DONE
        assert heard.ends == [None]
        assert (gateway.record.attempts, gateway.record.replica, route.replicas[0].in_flight) == (1, 0, 0)


async def test_a_replica_counts_what_is_in_flight(gateway: Gateway, tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a")))
        await release.wait()
        await peer.send(chunk(DONE))

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        await gateway.open(route)
        assert route.replicas[0].in_flight == 1
        heard = Heard(gateway.stream)
        release.set()
        await heard.over.wait()
        assert route.replicas[0].in_flight == 0


async def test_the_replica_sees_what_was_built_for_it(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, b"{}"))) as upstream:
        route = route_of(tmp_path, upstream.url, api_key="sk-own")
        opening = await gateway.open(route, request_of(b'{"model":"chat","input":"x"}', path="/v1/embeddings"))
        assert (opening.status, opening.body) == (200, b"{}")
        [received] = upstream.requests
        assert received.target == "/v1/embeddings"
        assert received.body == b'{"model":"llama","input":"x"}'
        assert received.headers("Authorization") == ["Bearer sk-own"]


async def test_malformed_events_are_told_with_their_route(gateway: Gateway, tmp_path: Path) -> None:
    raw = OK_EVENTS + chunk(event(b"no JSON") + content("a") + event(b"[half") + DONE) + LAST_CHUNK
    async with scripted_upstream(answering(raw)) as upstream:
        heard = await gateway.heard(route_of(tmp_path, upstream.url))
        assert heard.wire == content("a") + DONE
        assert gateway.malformed == ["chat", "chat"]


@pytest.mark.parametrize(
    ("path", "known"), [(CHAT, True), ("/v1/messages", True), ("/v1/audio/speech", False)], ids=lambda value: str(value)
)
async def test_a_client_that_leaves_before_any_answer_has_its_prompt_estimated(
    path: str, known: bool, gateway: Gateway, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    raw = b'{"model":"chat","messages":[{"role":"user","content":"%b"}]}' % (b"word " * 80)
    async with scripted_upstream(script) as upstream:
        task = asyncio.create_task(gateway.open(route_of(tmp_path, upstream.url), request_of(raw, path=path)))
        async with asyncio.timeout(5):
            await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    record = gateway.record
    assert (record.tokens_out, record.tokens_estimated) == ((0, True) if known else (None, False))
    assert 100 <= record.tokens_in <= 110 if record.tokens_in is not None else not known


# ---- failures ----


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"garbage\r\n", UpstreamInvalid),
        (answer(302, b"", b"Location: http://elsewhere"), UpstreamInvalid),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", UpstreamInvalid),
        (b"HTTP/1.1 200", UpstreamUnreachable),
        (OK_EVENTS + chunk(ROLE), UpstreamTruncated),
        (answer(200, b"{}")[:-1], UpstreamTruncated),
    ],
)
async def test_a_failure_names_route_and_replica_and_no_address(
    said: bytes, kind: type[GatewayError], gateway: Gateway, tmp_path: Path
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)

    async with scripted_upstream(script) as upstream:
        assert type(await failure(gateway, route_of(tmp_path, upstream.url))) is kind


async def test_a_refused_connection_names_route_and_replica_and_no_address(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering()) as upstream:
        route = route_of(tmp_path, upstream.url)
    error = await failure(gateway, route)
    assert type(error) is UpstreamUnreachable
    assert (gateway.record.attempts, gateway.record.replica) == (1, 0)


async def test_silence_is_a_first_token_timeout_and_closes_the_connection(gateway: Gateway, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url, ", timeouts: {first_token: 30ms}")
        assert type(await failure(gateway, route)) is FirstTokenTimeout
        async with asyncio.timeout(0.1):
            await gone.wait()


@pytest.mark.parametrize("said", [[], [OK_EVENTS], [OK_EVENTS, chunk(ROLE)], [answer(200, b"{}")[:-1]]])
async def test_cancelling_closes_the_connection_at_once(said: list[bytes], gateway: Gateway, tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*said)
        asked.set()
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        task = asyncio.create_task(gateway.open(route))
        async with asyncio.timeout(5):
            await asked.wait()
        assert route.replicas[0].in_flight == 1
        task.cancel()
        async with asyncio.timeout(0.1):
            await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert route.replicas[0].in_flight == 0


async def test_cancelling_the_stream_closes_the_connection_at_once(gateway: Gateway, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a")))
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        await gateway.open(route)
        gateway.stream.cancel()
        assert route.replicas[0].in_flight == 0
        async with asyncio.timeout(0.1):
            await gone.wait()


async def test_an_interrupt_while_waiting_is_raised_as_it_is(gateway: Gateway, tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        task = asyncio.create_task(gateway.open(route))
        async with asyncio.timeout(5):
            await asked.wait()
        error = Unavailable("shutting down", code="draining")
        gateway.stream.interrupt(error)
        with pytest.raises(Unavailable) as raised:
            await task
        assert raised.value is error
        assert route.replicas[0].in_flight == 0


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
async def test_an_error_answer_passes_without_the_replicas_key(status: int, gateway: Gateway, tmp_path: Path) -> None:
    said = b'{"error":{"message":"refused: Bearer sk-own-canary, tenant-canary"}}'
    async with scripted_upstream(answering(answer(status, said, b"Retry-After: 7"))) as upstream:
        own = {"api_key": "sk-own-canary", "headers": "{X-Tenant: tenant-canary}"}
        opening = await gateway.open(route_of(tmp_path, upstream.url, **own))
        assert opening.status == status
        assert opening.body == b'{"error":{"message":"refused: Bearer ***, ***"}}'
        assert ("Retry-After", "7") in opening.headers


async def test_a_client_that_never_reads_pauses_its_upstream(gateway: Gateway, tmp_path: Path) -> None:
    """Over real sockets: what a paused stream holds is bounded, the rest waits in the kernel and the upstream."""
    piece = chunk(content("x" * 50_000))
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(OK_EVENTS)
        while sent < 1000:
            await peer.send(piece)
            sent += 1

    async with scripted_upstream(script) as upstream:
        await gateway.open(route_of(tmp_path, upstream.url))
        before = -1
        while sent != before:  # until the upstream is stuck
            before = sent
            await asyncio.sleep(0.02)
        assert sent < 1000
        assert gateway.stream.events * 50_000 < 1_000_000
        gateway.stream.cancel()
        await turns()


async def test_requests_at_once_take_a_connection_each(gateway: Gateway, tmp_path: Path) -> None:
    both = asyncio.Barrier(2)

    async def script(peer: Peer) -> None:
        await peer.request()
        await both.wait()
        await peer.send(answer(200, b"{}"))

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url)
        openings = await asyncio.gather(gateway.open(route), gateway.open(route))
        assert [opening.body for opening in openings] == [b"{}", b"{}"]
        assert upstream.connections == 2
        assert route.replicas[0].in_flight == 0


# ---- what the record gets to know ----


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (b"garbage\r\n", Outcome.INVALID),
        (b"HTTP/1.1 200", Outcome.RESET),
        (OK_EVENTS + chunk(ROLE), Outcome.TRUNCATED),
        (answer(200, b"{}")[:-1], Outcome.TRUNCATED),
    ],
)
async def test_what_came_of_an_attempt_is_noted(
    said: bytes, outcome: Outcome, gateway: Gateway, tmp_path: Path
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)

    async with scripted_upstream(script) as upstream:
        await failure(gateway, route_of(tmp_path, upstream.url))
    assert gateway.record.attempted == [("chat", 0, outcome)]


async def test_an_attempt_without_a_connection_is_noted_as_refused(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering()) as upstream:
        route = route_of(tmp_path, upstream.url)
    await failure(gateway, route)
    assert gateway.record.attempted == [("chat", 0, Outcome.REFUSED)]
    assert gateway.record.phase is Phase.CONNECT


async def test_a_connection_that_takes_too_long_is_noted_as_a_timeout(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def for_ever(*args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", for_ever)
    await failure(gateway, route_of(tmp_path, "http://127.0.0.1:9", ", timeouts: {connect: 20ms}"))
    assert gateway.record.attempted == [("chat", 0, Outcome.TIMEOUT)]


# ---- what the replica's standing gets to know ----

BREAKER = ", breaker: {failures: 1, open_for: 10s}"
ERROR = event(b'{"error":{"message":"overloaded","code":503}}')


async def state_after(script: Script, gateway: Gateway, tmp_path: Path, settings: str = "") -> State:
    """The breaker of a replica that one failure opens, once one streamed request has come to its end."""
    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url, BREAKER + settings)
        try:
            if (await gateway.open(route)).body is None:
                await Heard(gateway.stream).over.wait()
        except UpstreamError:
            pass
        standing = route.replicas[0].standing
        assert standing.in_flight == 0
        return standing.breaker_state(asyncio.get_running_loop().time())


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (saying(end="reset"), ""),
        (saying(end="stall"), ", timeouts: {first_token: 20ms}"),
        (saying(b"garbage\r\n"), ""),
        (answering(answer(500, b"{}")), ""),
        (answering(answer(503, b"{}", b"Retry-After: 1")), ""),
        (answering(OK_EVENTS, chunk(ROLE + ERROR), LAST_CHUNK), ""),
        (answering(answer(200, b'{"error":{"message":"no"}}')), ""),
        (saying(OK_EVENTS, chunk(content("a")), end="reset"), ""),
        (saying(OK_EVENTS, chunk(content("a")), LAST_CHUNK), ""),
        (saying(OK_EVENTS, chunk(content("a")) + b"zz\r\n"), ""),
        (saying(OK_EVENTS, chunk(content("a")), end="stall"), ", timeouts: {idle: 20ms}"),
        (answering(OK_EVENTS, chunk(content("a")), chunk(ERROR), LAST_CHUNK), ""),
        (answering(OK_EVENTS, chunk(content("a")), chunk(ERROR + DONE), LAST_CHUNK), ""),
    ],
)
async def test_what_speaks_against_a_replica_opens_its_breaker(
    script: Script, settings: str, gateway: Gateway, tmp_path: Path
) -> None:
    assert await state_after(script, gateway, tmp_path, settings) is State.OPEN


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (answering(OK_EVENTS, chunk(content("a") + DONE), LAST_CHUNK), ""),
        (saying(OK_EVENTS, chunk(content("a") + DONE), end="reset"), ""),
        (answering(answer(200, b"{}")), ""),
        (answering(answer(400, b'{"error":{"message":"no"}}')), ""),
        (answering(answer(401, b"{}")), ""),
        (answering(answer(429, b"{}")), ""),
        (answering(OK_EVENTS, chunk(ROLE + event(b'{"error":{"message":"no","code":400}}')), LAST_CHUNK), ""),
        (saying(OK_EVENTS, chunk(content("a")), end="stall"), ", timeouts: {total: 30ms}"),
    ],
)
async def test_what_is_not_the_replicas_fault_does_not(
    script: Script, settings: str, gateway: Gateway, tmp_path: Path
) -> None:
    assert await state_after(script, gateway, tmp_path, settings) is State.CLOSED


async def test_a_refused_connection_opens_the_breaker(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering()) as upstream:
        route = route_of(tmp_path, upstream.url, BREAKER)
    await failure(gateway, route)
    assert route.replicas[0].standing.breaker_state(asyncio.get_running_loop().time()) is State.OPEN


def half_open(route: Route) -> Standing:
    """The only replica's standing, whose breaker waits for the one request that probes it."""
    standing = route.replicas[0].standing
    now = asyncio.get_running_loop().time()
    visit = Visit(standing, now - 60)
    visit.failed(FailureKind.SERVER_ERROR, now - 60)
    visit.over()
    assert standing.breaker_state(now) is State.HALF_OPEN
    return standing


async def test_the_first_content_closes_a_half_open_breaker(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(saying(OK_EVENTS, chunk(content("a")), end="stall")) as upstream:
        route = route_of(tmp_path, upstream.url, BREAKER)
        standing = half_open(route)
        await gateway.open(route)
        assert standing.breaker_state(asyncio.get_running_loop().time()) is State.CLOSED
        assert standing.first_token.value(asyncio.get_running_loop().time()) > 0
        gateway.stream.cancel()


async def test_preamble_alone_does_not_close_it_and_an_error_after_it_opens_it(
    gateway: Gateway, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ROLE))
        await go_on.wait()
        await peer.send(chunk(ERROR), LAST_CHUNK)

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url, BREAKER)
        standing = half_open(route)
        await gateway.open(route)
        assert standing.breaker_state(asyncio.get_running_loop().time()) is State.HALF_OPEN
        heard = Heard(gateway.stream)
        go_on.set()
        await heard.over.wait()
        assert standing.breaker_state(asyncio.get_running_loop().time()) is State.OPEN


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
@pytest.mark.parametrize("said", [[], [OK_EVENTS, chunk(ROLE)]], ids=["nothing", "preamble"])
async def test_a_client_that_leaves_a_probe_leaves_its_place_to_another(
    said: list[bytes], how: str, gateway: Gateway, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*said)
        asked.set()
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        route = route_of(tmp_path, upstream.url, BREAKER)
        standing = half_open(route)
        task = asyncio.create_task(gateway.open(route))
        async with asyncio.timeout(5):
            await asked.wait()
        now = asyncio.get_running_loop().time()
        assert not standing.available(now)
        if how == "cancelled":
            task.cancel()
        else:
            gateway.stream.interrupt(Unavailable("shutting down", code="draining"))
        with pytest.raises((asyncio.CancelledError, Unavailable)):
            await task
        assert standing.available(now)
        assert standing.in_flight == 0


async def test_a_replica_that_is_asked_too_much_rests(gateway: Gateway, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(429, b"{}", b"Retry-After: 7"))) as upstream:
        route = route_of(tmp_path, upstream.url)
        await gateway.open(route)
        rests_s = route.replicas[0].standing.rests_until - asyncio.get_running_loop().time()
        assert 6 < rests_s <= 7


async def test_a_request_that_cannot_be_said_is_no_attempt(gateway: Gateway, tmp_path: Path) -> None:
    route = route_of(tmp_path, "http://127.0.0.1:9", BREAKER)
    with pytest.raises(ValueError, match="control character"):
        await gateway.open(route, request_of(b'{"model":"chat"}', ("X-A", "b\r\nX-Evil: 1")))
    assert (gateway.record.attempts, route.replicas[0].in_flight) == (0, 0)


async def test_a_client_that_leaves_between_preamble_and_content_leaves_the_probes_place_to_another(
    gateway: Gateway, tmp_path: Path
) -> None:
    async with scripted_upstream(saying(OK_EVENTS, chunk(ROLE), end="stall")) as upstream:
        route = route_of(tmp_path, upstream.url, BREAKER)
        standing = half_open(route)
        await gateway.open(route)
        assert not standing.available(asyncio.get_running_loop().time())
        gateway.stream.cancel()
        assert standing.available(asyncio.get_running_loop().time())
        assert standing.in_flight == 0
