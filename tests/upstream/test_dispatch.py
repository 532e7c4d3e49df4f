"""From a request to an open answer: what exactly a replica is sent, and what is tried a second time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.config.loader import load
from proxy.errors import (
    FirstTokenTimeout,
    GatewayError,
    Unavailable,
    UpstreamInvalid,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from proxy.protocols import endpoints
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import Route, build_table
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome
from proxy.telemetry.record import Phase, RequestRecord
from proxy.upstream.dispatch import Dispatch, upstream_message
from proxy.upstream.exchange import Opening
from proxy.upstream.pool import Pool
from tests.support.memory_line import Heard, turns
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
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT = "/v1/chat/completions"
MAX_EVENT_BYTES = 1 << 20


def route_of(tmp_path: Path, url: str, settings: str = "", **replica: str) -> Route:
    """A route `chat`, whose replica at `url` knows the model as `llama`."""
    file = tmp_path / "routes.yaml"
    own = "".join(f", {name}: {value}" for name, value in replica.items())
    file.write_text(
        f'routes: {{chat: {{model: llama, replicas: [{{url: "{url}"{own}}}]{settings}}}}}', encoding="utf-8"
    )
    return build_table(load(file, {})).find("chat", None)


def request_of(
    raw: bytes = b'{"model":"chat","stream":true}',
    *headers: tuple[str, str],
    path: str = CHAT,
    query: str = "",
) -> ProxyRequest:
    forwarded = (("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "gw.test"))
    return ProxyRequest(path, query, headers, forwarded, RequestBody.parse(raw), "req_1")


def message_of(request: ProxyRequest, route: Route, *, asks_for_usage: bool = False) -> bytes:
    return upstream_message(request, route, route.replicas[0], asks_for_usage=asks_for_usage)


def lines_of(message: bytes) -> list[str]:
    return message.partition(b"\r\n\r\n")[0].decode("utf-8", "surrogateescape").split("\r\n")


# ---- what a replica is sent ----


def test_the_message_byte_for_byte(tmp_path: Path) -> None:
    route = route_of(tmp_path, "http://gpu-1:8000/api/v1", api_key="sk-own", headers="{X-Team: red}")
    raw = b'{ "messages":[{"content":"gr\xc3\xbc\xc3\x9fe, chat"}],\n  "model" : "chat", "seed":1e400 ,"x":[ ] }'
    request = request_of(
        raw,
        ("Host", "gw.test"),
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer sk-client"),
        ("Cookie", "a=b"),
        ("anthropic-beta", "x"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Content-Length", "999"),
        query="beta=true&x=%20",
    )
    body = raw.replace(b'"model" : "chat"', b'"model" : "llama"')
    assert message_of(request, route) == (
        b"POST /api/v1/chat/completions?beta=true&x=%%20 HTTP/1.1\r\n"
        b"Host: gpu-1:8000\r\n"
        b"Content-Type: application/json\r\n"
        b"anthropic-beta: x\r\n"
        b"X-Forwarded-For: 192.0.2.1\r\n"
        b"X-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: gw.test\r\n"
        b"X-Team: red\r\n"
        b"Authorization: Bearer sk-own\r\n"
        b"Accept-Encoding: identity\r\n"
        b"x-request-id: req_1\r\n"
        b"Content-Length: %d\r\n"
        b"\r\n%b" % (len(body), body)
    )


def test_a_body_that_needs_no_change_is_the_clients_own(tmp_path: Path) -> None:
    route = route_of(tmp_path, "http://gpu-1")
    raw = b'{"model" :  "llama", "stream":true,"n":1.50}'
    assert message_of(request_of(raw), route).endswith(b"\r\n\r\n" + raw)


@pytest.mark.parametrize(
    ("raw", "sent"),
    [
        (
            b'{ "model":"chat", "stream":true}',
            b'{"stream_options":{"include_usage":true}, "model":"llama", "stream":true}',
        ),
        (
            b'{"stream_options": null,"model":"llama","stream":true}',
            b'{"stream_options": {"include_usage":true},"model":"llama","stream":true}',
        ),
        (
            b'{"model":"llama","stream":true,"stream_options":{ "include_obfuscation":false, "x":1e400 }}',
            b'{"model":"llama","stream":true,'
            b'"stream_options":{"include_usage":true, "include_obfuscation":false, "x":1e400 }}',
        ),
        (
            b'{"model":"chat","stream_options":{"include_usage" : false},"stream":true}',
            b'{"model":"llama","stream_options":{"include_usage" : true},"stream":true}',
        ),
    ],
)
def test_asking_for_usage_moves_no_other_byte(raw: bytes, sent: bytes, tmp_path: Path) -> None:
    message = message_of(request_of(raw), route_of(tmp_path, "http://gpu-1"), asks_for_usage=True)
    assert message.endswith(b"\r\nContent-Length: %d\r\n\r\n%b" % (len(sent), sent))


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "api-key", "X-API-KEY"])
def test_the_clients_credentials_reach_a_replica_only_by_passthrough(name: str, tmp_path: Path) -> None:
    request = request_of(b'{"model":"chat"}', (name, "client-canary"))
    assert b"client-canary" not in message_of(request, route_of(tmp_path, "http://gpu-1"))
    passing = message_of(request, route_of(tmp_path, "http://gpu-1", ", auth: passthrough"))
    assert f"{name}: client-canary" in lines_of(passing)


def test_a_replicas_own_headers_replace_the_clients_and_the_gateways(tmp_path: Path) -> None:
    own = "{X-Team: red, X-Request-Id: fixed, X-Forwarded-For: none, Accept-Encoding: gzip}"
    route = route_of(tmp_path, "http://gpu-1", headers=own)
    lines = lines_of(message_of(request_of(b'{"model":"chat"}', ("x-team", "blue"), ("X-TEAM", "green")), route))
    found = {line.partition(":")[0].lower(): line for line in lines[1:]}
    assert len(found) == len(lines) - 1, "no header stands there twice"
    assert found["x-team"] == "X-Team: red"
    assert found["x-request-id"] == "X-Request-Id: fixed"
    assert found["x-forwarded-for"] == "X-Forwarded-For: none"
    assert found["accept-encoding"] == "Accept-Encoding: identity"


def test_what_crosses_may_be_kept_for_the_next_request_but_for_its_id_and_its_length(tmp_path: Path) -> None:
    first, second = (route_of(tmp_path, url, api_key=key) for url, key in (("http://a", "sk-a"), ("http://b", "sk-b")))
    request = request_of(b'{"model":"chat"}', ("X-A", "1"))
    again = replace(request, request_id="req_2", body=RequestBody.parse(b'{"model":"chat","n":1}'))
    assert again.crossing is request.crossing
    for route in (first, second):
        before, after = lines_of(message_of(request, route)), lines_of(message_of(again, route))
        assert [line.replace("req_1", "req_2") for line in before[:-1]] == after[:-1]
        assert (before[-1], after[-1]) == ("Content-Length: 17", "Content-Length: 23")
    assert "Authorization: Bearer sk-b" in lines_of(message_of(again, second))
    assert "sk-b" not in repr(again)


def test_a_replica_learns_nothing_it_need_not_know(tmp_path: Path) -> None:
    hidden = ["Cookie", "Origin", "Referer", "Proxy-Authorization", "X-Forwarded-For", "X-Real-IP", "TE", "X_Under"]
    request = request_of(b'{"model":"chat"}', *((name, "canary") for name in hidden))
    assert b"canary" not in message_of(request, route_of(tmp_path, "http://gpu-1"))


def test_a_message_cannot_be_split_by_a_header(tmp_path: Path) -> None:
    request = request_of(b'{"model":"chat"}', ("X-A", "b\r\nX-Evil: 1"))
    with pytest.raises(ValueError, match="control character"):
        message_of(request, route_of(tmp_path, "http://gpu-1"))


# ---- a world with a replica ----


class Gateway:
    """A dispatch with its pool, and one request after another sent through it to its answer's commit point."""

    def __init__(self, pool: Pool) -> None:
        self._dispatch = Dispatch(pool, max_event_bytes=MAX_EVENT_BYTES, on_malformed=self._on_malformed)
        self.malformed: list[str] = []
        self.stream = Stream()
        self.record = RequestRecord("req_1", "POST", CHAT, 0.0)

    async def open(self, route: Route, request: ProxyRequest | None = None) -> Opening:
        request = request or request_of()
        self.stream = Stream()
        self.record = RequestRecord("req_1", "POST", request.path, 0.0)
        watcher = endpoints.for_path(request.path).watcher(request.body)
        return await self._dispatch.open(request, route, self.stream, watcher, self.record)

    async def heard(self, route: Route) -> Heard:
        """A streamed answer, to its end."""
        assert (await self.open(route)).body is None
        heard = Heard(self.stream)
        await heard.over.wait()
        return heard

    def _on_malformed(self, route: Route) -> None:
        self.malformed.append(route.name)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    pool = Pool()
    yield Gateway(pool)
    async with asyncio.timeout(5):
        await pool.close()


async def failure(gateway: Gateway, route: Route, request: ProxyRequest | None = None) -> GatewayError:
    """The error an attempt comes to: it names route and replica, and no address; nothing stays in flight."""
    with pytest.raises(GatewayError) as raised:
        await gateway.open(route, request)
    error = raised.value
    assert error.message.startswith('route "chat": replica 0: ')
    origin = route.replicas[0].origin
    assert origin.host not in error.message
    assert str(origin.port) not in error.message
    assert route.replicas[0].in_flight == 0
    return error


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


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([], ["application/json"]),
        ([("content-type", "application/x-www-form-urlencoded")], ["application/json"]),
        ([("Content-Type", "application/json; charset=utf-8")], ["application/json; charset=utf-8"]),
    ],
)
def test_the_body_is_always_said_to_be_json(sent: list[tuple[str, str]], received: list[str], tmp_path: Path) -> None:
    message = message_of(request_of(b'{"model":"chat"}', *sent), route_of(tmp_path, "http://gpu-1:8000"))
    said = [line.partition(": ")[::2] for line in lines_of(message)]
    assert [value for name, value in said if name.lower() == "content-type"] == received


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
