"""Opening a connection: what is said when it cannot be."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from proxy.errors import UpstreamUnreachable
from proxy.routing.replica import Origin, parse_origin
from proxy.upstream.dialling import open_connection, shortage, unreachable
from tests.support.tls import certificate
from tests.support.upstream import Peer, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path


class Greeted(asyncio.Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard.set_result(data)


async def refusal(origin: Origin, timeout_s: float | None = 5.0, tls: ssl.SSLContext | None = None) -> str:
    """What is said; nothing of it names the address."""
    with pytest.raises(UpstreamUnreachable) as raised:
        await open_connection(Greeted, origin, timeout_s, tls)
    message = raised.value.message
    assert origin.host not in message
    assert str(origin.port) not in message
    return message


async def greet(peer: Peer) -> None:
    await peer.send(b"hello")
    await peer.closed()


async def test_the_protocol_of_the_new_connection_is_given() -> None:
    async with scripted_upstream(greet) as upstream:
        greeted = await open_connection(Greeted, parse_origin(upstream.url)[0], None, None)
        assert await greeted.heard == b"hello"
        greeted.transport.close()


async def test_a_closed_port_refuses() -> None:
    async with scripted_upstream(greet) as upstream:
        origin = parse_origin(upstream.url)[0]
    assert await refusal(origin) == "the connection was refused; is the model server running?"


async def test_a_name_that_nobody_knows_or_that_can_be_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert await refusal(Origin("http", "x" * 64 + ".invalid", 8000)) == "its host name cannot be resolved"
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    assert await refusal(Origin("http", "no-such-host.invalid", 8000)) == "its host name cannot be resolved"


async def test_a_connection_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", lambda *_: asyncio.Event().wait())
    message = await refusal(Origin("http", "127.0.0.9", 9), 0.02)
    assert message == "no connection within timeouts.connect (0.02 s)"


async def test_a_certificate_nobody_vouches_for_is_not_good_enough(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own, key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    origin = Origin("https", "127.0.0.1", server.sockets[0].getsockname()[1])
    async with server:
        assert await refusal(origin, tls=ssl.create_default_context()) == "TLS failed (CERTIFICATE_VERIFY_FAILED)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(), "the connection was reset"),
        (OSError("Multiple exceptions: [Errno 111] …, [Errno 111] …"), "the connection was refused; is the model"),
        (OSError("[Errno 113] No route to host"), "no connection could be made"),
        (TimeoutError(), "no connection within timeouts.connect"),
    ],
)
def test_every_other_failure_has_its_words(error: OSError, said: str) -> None:
    assert unreachable(error, None).message.startswith(said)


@pytest.mark.parametrize(
    ("error", "is_ours"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (OSError("Multiple exceptions: [Errno 24] Too many open files, [Errno 111] Connection refused"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), False),
        (OSError(errno.EHOSTUNREACH, "No route to host"), False),
        (TimeoutError(), False),
    ],
)
def test_what_the_gateway_itself_lacks_is_not_the_model_servers_fault(error: OSError, is_ours: bool) -> None:
    said = shortage(error)
    assert (said is not None) == is_ours
    assert said is None or (said.status, said.retry_after_s) == (503, 1.0)
