"""The handshake with one replica, byte by byte: what it is sent, and what comes of each answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.errors import FirstTokenTimeout, GatewayError, UpstreamInvalid, UpstreamTruncated, UpstreamUnreachable
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.balancer import RoundRobin
from proxy.routing.replica import Replica, parse_origin
from proxy.routing.table import Route, Timeouts
from proxy.upstream import upgrade as upgrade_room
from proxy.upstream.upgrade import SocketLimits, upgrade
from proxy.wire.upgrade import UpgradeRefused
from tests.support.upstream import Peer, Received, answer, chunk, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from proxy.upstream.websocket import UpstreamSocket
    from tests.support.upstream import Script, ScriptedUpstream

HELLO = b"\x81\x05hello"
CANARY = "sk-canary-0001"
LIMITS = SocketLimits(1000, None)


def accept(request: Received) -> bytes:
    key = (request.header("sec-websocket-key") or "").encode()
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def switching(request: Received, *more: bytes) -> bytes:
    """A good 101, with more header lines."""
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept(request),
        *more,
    ]
    return b"\r\n".join([*lines, b"", b""])


class Heard:
    """A listener that waits for its first message."""

    def __init__(self) -> None:
        self.first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def message(self, opcode: int, payload: bytes) -> bool:
        self.first.set_result(payload)
        return False

    def closed(self, code: int | None, reason: str) -> None: ...
    def lost(self, error: GatewayError) -> None: ...


def replica_at(upstream: ScriptedUpstream, *headers: tuple[str, str], prefix: str = "") -> Replica:
    return Replica(0, parse_origin(upstream.url)[0], prefix, headers)


def route_of(replica: Replica, *, passthrough: bool = False, first_token_s: float | None = None) -> Route:
    timeouts = Timeouts(5.0, first_token_s, None, None)
    return Route("m", "org/voice", (), (replica,), RoundRobin(), timeouts, None, passthrough)


def asked(*headers: tuple[str, str], query: str = "model=m") -> ProxyRequest:
    body = RequestBody.parse(b'{"model":"m","stream":true}')
    return ProxyRequest("/v1/realtime", query, headers, [("X-Forwarded-For", "10.0.0.1")], body, "req_1")


async def shake(
    upstream: ScriptedUpstream,
    *offered: str,
    replica: Replica | None = None,
    request: ProxyRequest | None = None,
    passthrough: bool = False,
    first_token_s: float | None = None,
) -> UpstreamSocket:
    replica = replica or replica_at(upstream)
    route = route_of(replica, passthrough=passthrough, first_token_s=first_token_s)
    return await upgrade(
        request or asked(),
        offered,
        route,
        replica,
        LIMITS,
        tls=None,
        on_connected=lambda: None,
        on_over=lambda _: None,
    )


@asynccontextmanager
async def open_socket(upstream: ScriptedUpstream, *offered: str) -> AsyncIterator[UpstreamSocket]:
    socket = await shake(upstream, *offered)
    try:
        yield socket
    finally:
        socket.abort()


async def welcome(peer: Peer) -> None:
    await peer.send(switching(await peer.request()))
    await peer.closed()


# ---- what the replica is sent ----


async def test_the_upgrade_is_the_clients_under_the_replicas_own_name_and_credentials() -> None:
    async with scripted_upstream(welcome) as upstream:
        replica = replica_at(upstream, ("Authorization", f"Bearer {CANARY}"), ("OpenAI-Beta", "own"), prefix="/api")
        client = asked(
            ("Host", "gateway"),
            ("Authorization", "Bearer of-the-client"),
            ("Sec-WebSocket-Key", "of the client"),
            ("Sec-WebSocket-Extensions", "permessage-deflate"),
            ("Sec-WebSocket-Protocol", "openai-insecure-api-key.of-the-client"),
            ("Origin", "http://page"),
            ("Cookie", "c"),
            ("OpenAI-Beta", "realtime=v1"),
            ("User-Agent", "t"),
            query="x=%20&model=m&ticket=t",
        )
        socket = await shake(upstream, "realtime", "v2", replica=replica, request=client)
        socket.abort()
        [request] = upstream.requests
    assert request.target == "/api/v1/realtime?x=%20&model=org%2Fvoice"
    lines = request.head.split(b"\r\n")
    key = f"Sec-WebSocket-Key: {request.header('sec-websocket-key')}".encode()
    assert lines == [
        b"GET /api/v1/realtime?x=%20&model=org%2Fvoice HTTP/1.1",
        f"Host: {replica.origin.authority}".encode(),
        b"User-Agent: t",
        b"X-Forwarded-For: 10.0.0.1",
        b"x-request-id: req_1",
        f"Authorization: Bearer {CANARY}".encode(),
        b"OpenAI-Beta: own",
        b"Accept-Encoding: identity",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        key,
        b"Sec-WebSocket-Protocol: realtime, v2",
        b"",
        b"",
    ]


async def test_passthrough_sends_the_clients_own_credentials() -> None:
    async with scripted_upstream(welcome) as upstream:
        socket = await shake(upstream, request=asked(("Authorization", "Bearer mine")), passthrough=True)
        socket.abort()
        assert upstream.requests[0].headers("authorization") == ["Bearer mine"]


async def test_every_handshake_has_a_key_of_its_own() -> None:
    async with scripted_upstream(welcome) as upstream:
        for _ in range(3):
            (await shake(upstream)).abort()
        assert len({request.header("sec-websocket-key") for request in upstream.requests}) == 3


# ---- a good answer ----


async def test_what_comes_with_the_answer_is_told_wherever_it_is_cut() -> None:
    answers: asyncio.Queue[int | None] = asyncio.Queue()

    async def script(peer: Peer) -> None:
        whole = switching(await peer.request()) + HELLO
        cut = await answers.get()
        await peer.send(
            *([whole[at : at + 1] for at in range(len(whole))] if cut is None else [whole[:cut], whole[cut:]])
        )
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        for cut in (1, 12, 13, 100, 125, 129, 132, 133, 134, 139, None):
            answers.put_nowait(cut)
            async with open_socket(upstream) as socket:
                heard = Heard()
                socket.listen(heard)
                assert await asyncio.wait_for(heard.first, 5) == b"hello"


@pytest.mark.parametrize(("line", "selected"), [(b"X: y", None), (b"Sec-WebSocket-Protocol: v2", "v2")])
async def test_the_replica_selects_a_subprotocol_or_none(line: bytes, selected: str | None) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(switching(await peer.request(), line))
        await peer.closed()

    async with scripted_upstream(script) as upstream, open_socket(upstream, "v1", "v2") as socket:
        assert socket.subprotocol == selected


# ---- a refusal ----

REFUSALS: dict[str, tuple[list[bytes], int, bytes]] = {
    "with a length": ([answer(403, b'{"error":"no"}')], 403, b'{"error":"no"}'),
    "chunked": (
        [b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"no"), chunk(b"pe"), b"0\r\n\r\n"],
        *(401, b"nope"),
    ),
    "until the connection ends": ([b"HTTP/1.1 503 X\r\nConnection: close\r\n\r\nlat", b"er"], 503, b"later"),
    "without a body": ([b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"], 404, b""),
    "in small pieces": ([b"HTTP/1.1 ", b"4", answer(426, b"{}")[10:]], 426, b"{}"),
    "behind an interim answer": ([b"HTTP/1.1 103 Early Hints\r\n\r\n", answer(429, b"{}")], 429, b"{}"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_read_to_its_end(case: str) -> None:
    pieces, status, body = REFUSALS[case]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    async with scripted_upstream(script) as upstream:
        with pytest.raises(UpgradeRefused) as raised:
            await shake(upstream)
    assert (raised.value.status, raised.value.body) == (status, body)


async def test_a_refusal_is_not_quoted_with_the_replicas_credentials() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(401, b'{"error":"bad key %b"}' % CANARY.encode(), b"X-Key: " + CANARY.encode()))

    async with scripted_upstream(script) as upstream:
        with pytest.raises(UpgradeRefused) as raised:
            await shake(upstream, replica=replica_at(upstream, ("Authorization", f"Bearer {CANARY}")))
    assert raised.value.body == b'{"error":"bad key ***"}'
    assert CANARY not in str(raised.value.headers)


# ---- everything else ----


def bad(*pieces: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return script


INVALID: dict[str, bytes] = {
    "200": answer(200, b"{}"),
    "a redirect": answer(302, b"", b"Location: http://elsewhere/"),
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "a 101 of HTTP/1.0": b"HTTP/1.0 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "a 101 without a word": b"HTTP/1.1 101 X\r\n\r\n",
    "a 101 to something else": b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "a 101 with another key": b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: x\r\n\r\n",
    "a 101 with a broken header": b"HTTP/1.1 101 X\r\nUpgrade websocket\r\n\r\n",
    "a 101 with too many headers": b"HTTP/1.1 101 X\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "a 101 whose head never ends": b"HTTP/1.1 101 X\r\n" + b"X: " + b"y" * 70_000,
    "a 1012": b"HTTP/1.1 1012 X\r\n\r\n",
    "compressed": answer(400, b"x", b"Content-Encoding: gzip"),
    "a length twice": answer(400, b"{}", b"Content-Length: 3"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_an_answer_that_is_none_is_invalid(case: str) -> None:
    async with scripted_upstream(bad(INVALID[case])) as upstream:
        with pytest.raises(UpstreamInvalid):
            await shake(upstream)


@pytest.mark.parametrize(
    "lines",
    [[b"Sec-WebSocket-Protocol: v3"], [b"Sec-WebSocket-Extensions: permessage-deflate"]],
    ids=["a subprotocol nobody offered", "an extension"],
)
async def test_a_101_that_takes_liberties_is_invalid_and_the_connection_is_closed(lines: Sequence[bytes]) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.send(switching(await peer.request(), *lines))
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(UpstreamInvalid):
            await shake(upstream, "v1")
        await asyncio.wait_for(gone.wait(), 5)


@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 10",), (b"HTTP/1.1 101 X\r\nUpgr",)])
async def test_a_connection_that_ends_before_the_answer_is_unreachable(pieces: tuple[bytes, ...]) -> None:
    async with scripted_upstream(bad(*pieces)) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await shake(upstream)


async def test_a_refusal_that_breaks_off_is_truncated() -> None:
    async with scripted_upstream(bad(answer(403, b"x" * 100)[:-1])) as upstream:
        with pytest.raises(UpstreamTruncated):
            await shake(upstream)


async def test_a_refusal_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_room, "MAX_REFUSAL_BYTES", 1000)
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 403 X\r\n\r\n", b"x" * 1001)
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(UpstreamInvalid):
            await shake(upstream)
        await asyncio.wait_for(gone.wait(), 5)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101 X\r\n", b"HTTP/1.1 403 X\r\nContent-Length: 9\r\n\r\nno"])
async def test_silence_has_its_limit_and_the_connection_is_closed(said: bytes) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        with pytest.raises(FirstTokenTimeout) as raised:
            await shake(upstream, first_token_s=0.05)
        assert "timeouts.first_token (0.05 s)" in raised.value.message
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_client_that_leaves_meanwhile_takes_the_connection_with_it() -> None:
    asked_it, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked_it.set()
        await peer.closed()
        gone.set()

    async with scripted_upstream(script) as upstream:
        task = asyncio.ensure_future(shake(upstream))
        await asked_it.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)
