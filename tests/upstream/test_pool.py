"""The pool: which connection is handed out, how long one is kept, and what is said when there is none."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.errors import UpstreamUnreachable
from proxy.routing.replica import Origin, parse_origin
from proxy.upstream import pool as pool_room
from proxy.upstream.pool import KEEP_S, Pool
from tests.support.memory_line import Answered, Clock, turns
from tests.support.upstream import Peer, Script, ScriptedUpstream, answer, answering, chunk, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.upstream.connection import UpstreamConnection

REQUEST = b"POST /v1/x HTTP/1.1\r\nHost: gpu\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = answer(200, b"{}")


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    built = Pool()
    yield built
    async with asyncio.timeout(5):
        await built.close()


def origin_of(upstream: ScriptedUpstream) -> Origin:
    return parse_origin(upstream.url)[0]


async def take(pool: Pool, origin: Origin, *, fresh: bool = False, timeout_s: float | None = 5.0) -> UpstreamConnection:
    return await pool.connection(origin, connect_timeout_s=timeout_s, fresh=fresh)


async def use(connection: UpstreamConnection) -> Answered:
    answered = Answered()
    connection.send(REQUEST, answered)
    await answered.over.wait()
    return answered


async def unreachable(pool: Pool, origin: Origin, timeout_s: float | None = 5.0) -> str:
    """What is said of an origin that cannot be reached; nothing of it names the address."""
    with pytest.raises(UpstreamUnreachable) as raised:
        await take(pool, origin, timeout_s=timeout_s)
    message = raised.value.message
    assert raised.value.status == 502
    assert origin.host not in message
    assert str(origin.port) not in message
    return message


# ---- which one ----


async def test_a_connection_is_used_again_after_its_answer(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        first = await take(pool, origin_of(upstream))
        await use(first)
        second = await take(pool, origin_of(upstream))
        await use(second)
        assert second is first
        assert upstream.connections == 1


async def test_a_busy_connection_is_not_handed_out(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        one, other = [await take(pool, origin_of(upstream)) for _ in range(2)]
        assert one is not other
        await use(one)
        assert await take(pool, origin_of(upstream)) is one
        assert await take(pool, origin_of(upstream)) not in (one, other)


async def test_the_newest_is_handed_out_first(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        taken = [await take(pool, origin_of(upstream)) for _ in range(3)]
        for connection in (taken[1], taken[2], taken[0]):
            await use(connection)
        again = [await take(pool, origin_of(upstream)) for _ in range(3)]
        assert again == [taken[0], taken[2], taken[1]]


async def test_a_fresh_connection_is_a_new_one(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        first = await take(pool, origin_of(upstream))
        await use(first)
        assert await take(pool, origin_of(upstream), fresh=True) is not first
        assert await take(pool, origin_of(upstream)) is first


async def test_connections_are_not_shared_between_origins(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as one, scripted_upstream(answering(OK)) as other:
        await use(await take(pool, origin_of(one)))
        await use(await take(pool, origin_of(other)))
        assert (one.connections, other.connections) == (1, 1)


async def test_a_connection_the_server_has_closed_is_never_handed_out(pool: Pool) -> None:
    closing = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await closing.wait()

    async with scripted_upstream(script) as upstream:
        first = await take(pool, origin_of(upstream))
        await use(first)
        closing.set()
        while first.usable:
            await asyncio.sleep(0)
        assert await take(pool, origin_of(upstream)) is not first


async def test_a_connection_closed_while_idle_is_never_handed_out(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        first = await take(pool, origin_of(upstream))
        await use(first)
        first.close()  # its loss is told in a later turn
        assert await take(pool, origin_of(upstream)) is not first


@pytest.mark.parametrize(
    "last", [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
)
async def test_a_connection_that_says_it_closes_is_not_kept(last: bytes, pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(last)

    async with scripted_upstream(script) as upstream:
        assert (await use(await take(pool, origin_of(upstream)))).ends == [None]
        await use(await take(pool, origin_of(upstream)))
        assert upstream.connections == 2


async def test_a_connection_with_an_answer_under_way_is_not_kept(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, chunk(b"half"))
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        first = await take(pool, origin_of(upstream))
        first.send(REQUEST, Answered())
        await turns()
        first.finish()
        assert await take(pool, origin_of(upstream)) is not first
        assert upstream.connections == 2


# ---- how long ----


async def test_an_unused_connection_is_closed_after_a_while(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with scripted_upstream(answering(OK)) as upstream:
        one, other = [await take(pool, origin_of(upstream), timeout_s=None) for _ in range(2)]
        await use(one)
        await clock.advance(KEEP_S * 0.75)
        await use(other)
        await clock.advance(KEEP_S * 0.5)
        assert (one.usable, other.usable) == (False, True)
        await clock.advance(KEEP_S * 0.4)
        assert other.usable
        await clock.advance(KEEP_S * 0.2)
        assert not other.usable
        assert await take(pool, origin_of(upstream), timeout_s=None) not in (one, other)


async def test_a_connection_in_use_is_not_swept(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with scripted_upstream(answering(OK)) as upstream:
        connection = await take(pool, origin_of(upstream), timeout_s=None)
        await use(connection)
        assert await take(pool, origin_of(upstream), timeout_s=None) is connection
        await clock.advance(KEEP_S * 3)
        assert connection.usable
        assert (await use(connection)).ends == [None]


async def test_closing_the_pool_closes_idle_and_busy_connections() -> None:
    pool = Pool()
    gone = 0

    async def script(peer: Peer) -> None:
        nonlocal gone
        await peer.request()
        await peer.send(OK)
        await peer.closed()
        gone += 1

    async with scripted_upstream(script) as upstream:
        idle, busy = [await take(pool, origin_of(upstream)) for _ in range(2)]
        await use(idle)
        answered = Answered()
        busy.send(REQUEST, answered)
        await pool.close()
        assert not idle.usable
        assert not busy.usable
        assert answered.ends == []
        async with asyncio.timeout(5):
            while gone < 1:
                await asyncio.sleep(0)


# ---- none ----


async def test_a_refused_connection_says_what_to_look_at(pool: Pool) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        origin = origin_of(upstream)
    assert await unreachable(pool, origin) == "the connection was refused; is the model server running?"


async def test_a_name_of_several_addresses_that_all_refuse_says_the_same(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_upstream(answering(OK)) as upstream:
        origin = origin_of(upstream)

    async def addresses(*_: object, **__: object) -> list[object]:
        return [(2, 1, 6, "", (host, origin.port)) for host in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    named = Origin("http", "several.test", origin.port)
    assert await unreachable(pool, named) == "the connection was refused; is the model server running?"


async def test_a_name_that_cannot_be_resolved_says_so(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    assert await unreachable(pool, Origin("http", "no-such-host.invalid", 8000)) == "its host name cannot be resolved"


async def test_a_name_that_can_be_none_says_so(pool: Pool) -> None:
    assert await unreachable(pool, Origin("http", "x" * 64 + ".invalid", 8000)) == "its host name cannot be resolved"


async def test_a_connection_that_takes_too_long_is_given_up(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", lambda *_: asyncio.Event().wait())
    message = await unreachable(pool, Origin("http", "127.0.0.9", 9), 0.02)
    assert message == "no connection within timeouts.connect (0.02 s)"


async def test_the_kernels_own_timeout_needs_no_limit_of_ours(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def give_up(*_: object) -> None:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", give_up)
    assert await unreachable(pool, Origin("http", "127.0.0.9", 9), None) == "no connection within timeouts.connect"


async def test_cancelling_a_slow_connect_leaves_nothing_behind(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def never(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    task = asyncio.create_task(take(pool, Origin("http", "127.0.0.1", 9)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await pool.close()  # a ResourceWarning would fail this test


async def test_a_connection_lost_while_it_was_made_is_no_connection(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost_at_once(_: Origin, connection: UpstreamConnection) -> None:
        connection.close()

    monkeypatch.setattr(pool, "_open", lost_at_once)
    message = await unreachable(pool, Origin("http", "127.0.0.9", 9))
    assert message == "the connection was closed as soon as it was made"


# ---- TLS ----


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of its own authority for localhost, with its key in the same file."""
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(pem)),
        ],
        check=True,
        capture_output=True,
    )
    return tmp_path


@asynccontextmanager
async def over_tls(upstream: ScriptedUpstream, folder: Path) -> AsyncIterator[Origin]:
    """The upstream once more, behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    host, port = upstream.url.removeprefix("http://").split(":")
    forwards: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        forwards.update(asyncio.create_task(copy(*pair)) for pair in ((reader, inner_writer), (inner_reader, writer)))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    try:
        yield Origin("https", "localhost", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in forwards:
            task.cancel()
        await asyncio.gather(*forwards, return_exceptions=True)


async def test_a_trusted_upstream_is_spoken_to_over_tls(
    pool: Pool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    async with scripted_upstream(answering(OK)) as upstream, over_tls(upstream, certificate) as origin:
        first = await take(pool, origin)
        answered = await use(first)
        assert (answered.body, answered.ends) == (b"{}", [None])
        assert await take(pool, origin) is first
        assert (await use(first)).ends == [None]
        assert upstream.connections == 1
        await pool.close()


async def test_an_upstream_nobody_vouches_for_is_not_spoken_to(
    pool: Pool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    async with scripted_upstream(answering(OK)) as upstream, over_tls(upstream, certificate) as origin:
        assert await unreachable(pool, origin) == "TLS failed (CERTIFICATE_VERIFY_FAILED)"
        assert upstream.requests == []


async def test_a_certificate_for_another_name_is_not_good_enough(
    pool: Pool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    async with scripted_upstream(answering(OK)) as upstream, over_tls(upstream, certificate) as origin:
        assert "TLS failed" in await unreachable(pool, Origin("https", "127.0.0.1", origin.port))


async def test_tls_with_a_server_that_speaks_none_fails(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with scripted_upstream(script) as upstream:
        plain = origin_of(upstream)
        message = await unreachable(pool, Origin("https", plain.host, plain.port))
        assert message.startswith(("TLS failed", "the connection was reset", "no connection"))


async def test_tls_that_never_answers_is_given_up(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        await peer.closed()

    async with scripted_upstream(script) as upstream:
        plain = origin_of(upstream)
        message = await unreachable(pool, Origin("https", plain.host, plain.port), 0.05)
        assert message == "no connection within timeouts.connect (0.05 s)"


# ---- the built-in model ----


async def test_the_built_in_model_is_connected_and_kept_like_any_other(pool: Pool) -> None:
    origin, _ = parse_origin("demo://?interval=0&first=0")
    connection = await take(pool, origin)
    body = b'{"model":"demo","messages":[{"role":"user","content":"hello"}]}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: demo\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for _ in range(2):
        answered = Answered()
        connection.send(request, answered)
        await answered.over.wait()
        assert answered.head is not None
        assert (answered.head.status, answered.ends) == (200, [None])
        assert b'"choices"' in answered.body
        assert await take(pool, origin) is connection
    connection.close()
    await turns()
    assert await take(pool, origin) is not connection


def test_connections_are_kept_for_less_than_the_common_servers_do() -> None:
    assert pool_room.KEEP_S < 5.0


async def test_only_idle_connections_to_others_are_closed_when_few_are_kept() -> None:
    gone = [asyncio.Event(), asyncio.Event()]

    def noticing(event: asyncio.Event) -> Script:
        async def script(peer: Peer) -> None:
            await peer.closed()
            event.set()

        return script

    pool = Pool()
    async with scripted_upstream(noticing(gone[0])) as first, scripted_upstream(noticing(gone[1])) as second:
        origins = [parse_origin(upstream.url)[0] for upstream in (first, second)]
        for origin in origins:
            pool._keep(origin, await pool.connection(origin, connect_timeout_s=5, fresh=True))
        in_use = await pool.connection(origins[0], connect_timeout_s=5, fresh=True)
        pool.keep_only({origins[1]})
        await asyncio.wait_for(gone[0].wait(), 10)
        assert in_use.usable
        assert not gone[1].is_set()
        assert origins[0] not in pool._idle
    await pool.close()
