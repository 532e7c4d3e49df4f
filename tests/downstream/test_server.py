"""The server at a port: its settings, who reads whose requests, what it refuses, and how it stops."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from proxy.downstream import client_socket, server
from proxy.downstream.connection import ClientConnection
from proxy.downstream.known_heads import KnownHeads
from proxy.downstream.quick_connection import QuickConnection
from proxy.downstream.server import ClientServer, server_tls
from tests.support.client_line import ClientTransport, Office, office, settled
from tests.support.memory_line import turns
from tests.support.raw_client import RawClient, chat, get, post
from tests.support.records import until
from tests.support.served import served
from tests.support.tls import certificate

if TYPE_CHECKING:
    from pathlib import Path

FIRST = post("/k", b"first")
CONTINUE = "Expect: 100-continue"


async def never(request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError


async def test_every_setting_of_the_server_takes_effect() -> None:
    clients = ClientServer(never, 7.0)
    made = clients()
    assert isinstance(made, ClientConnection)
    assert clients.handler_cancellation
    assert made.access_log is None
    assert made.keepalive_timeout == client_socket.KEEPALIVE_S
    assert made.max_line_size == server.MAX_LINE_BYTES
    assert made.max_field_size == server.MAX_FIELD_BYTES
    assert made.max_headers == server.MAX_HEADERS
    assert made._lingering_time == client_socket.LINGER_S
    assert made._head_timeout_s == 7.0


async def test_who_keeps_known_heads_begins_without_a_parser() -> None:
    assert isinstance(ClientServer(never, None, KnownHeads(10))(), QuickConnection)
    assert isinstance(ClientServer(never, None)(), ClientConnection)


@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("known", [True, False])
async def test_a_connection_is_taken_over_with_its_first_bytes_and_its_slow_reader(known: bool, paused: bool) -> None:
    async with office() as there:
        await there.say(FIRST)
        line = await there.say(post("/other", b"") if known else FIRST)
        before = line.protocol
        assert line.is_quick != known
        if paused:
            line.fall_behind()
        line.arrive(FIRST if known else get("/"))
        assert line.is_quick == known
        assert line.protocol.writing_paused == paused
        if paused:
            line.catch_up()
        await settled(line)
        assert line.sent.endswith(b"POST /k 5 first" if known else b"GET / 0 ")
        assert line.protocol in there.server.connections
        assert before not in there.server.connections


async def waiting(there: Office, *reads: bytes) -> tuple[ClientTransport, list[bool]]:
    """Whether the server awaits a request after each of these reads of a new client."""
    line = there.line()
    seen = [there.server.awaits_request()]
    for read in reads:
        line.arrive(read)
        await settled(line)
        seen.append(there.server.awaits_request())
    return line, seen


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "aiohttp's"])
async def test_a_request_is_awaited_of_those_who_have_said_none_or_not_all_of_one(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        assert not there.server.awaits_request()
        await there.say(FIRST)
        assert not there.server.awaits_request()
        there.desk.may_answer.clear()
        line, seen = await waiting(there, FIRST[:-5], FIRST[-5:-2], FIRST[-2:])
        assert line.is_quick == quick
        assert seen == [True, True, True, False]
        there.desk.may_answer.set()
        await settled(line)
        line.arrive(FIRST[:-1])
        await settled(line)
        assert there.server.awaits_request()
        line.reset()
        await turns()
        assert not there.server.awaits_request()
        line, seen = await waiting(there, FIRST[:20], FIRST[20:])
        assert not line.is_quick
        assert seen == [True, True, False]


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "aiohttp's"])
async def test_an_unknown_expectation_is_refused_and_a_known_one_is_not_for_the_lane(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        line = await there.say(post("/k", b"", "Expect: magic"))
        assert line.said.startswith(b"HTTP/1.1 400 ")
        assert b"magic" not in line.sent
        assert line.closed
        line = await there.say(post("/k", b"", CONTINUE), post("/k", b"", CONTINUE))
        assert line.said.count(b"HTTP/1.1 404 ") == 2  # the application's, which serves nothing here
        assert there.desk.served == []


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "aiohttp's"])
async def test_a_server_that_stops_lets_go_of_the_idle_and_gives_the_others_a_moment(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        idle = await there.say(FIRST, FIRST)
        there.desk.may_answer.clear()
        busy = await there.say(FIRST)
        assert idle.is_quick == busy.is_quick == quick
        there.server.pre_shutdown()
        await turns()
        assert not busy.closed
        there.desk.may_answer.set()
        await there.server.shutdown(10.0)
        await turns()
        assert idle.closed
        assert busy.sent.endswith(b"POST /k 5 first")
        assert busy.closed
        assert there.server.connections == []


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "aiohttp's"])
async def test_a_request_that_outlives_the_last_words_is_cancelled(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        await there.say(FIRST)
        there.desk.may_answer.clear()
        busy = await there.say(FIRST)
        assert busy.is_quick == quick
        serving = busy.protocol._task_handler
        busy.stays_open = True  # what was written is not taken, so that the connection does not end by itself
        await there.server.shutdown(0.01)
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert busy.sent == b""


async def test_tls_serves_by_both_and_wrong_files_are_refused(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(own))
    tls = f"server: {{port: 0, tls: {{certificate: {own.name}, key: {key.name}}}}}\n"
    async with served(tls + "routes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n", tmp_path) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=trusting)
        client = RawClient(reader, writer)
        asked = post("/v1/chat/completions", chat())
        readers = [ClientConnection, QuickConnection, QuickConnection, ClientConnection]
        for cut_at, reads in zip([0, 0, 0, 9], readers, strict=True):
            if cut_at:
                await client.send(asked[:cut_at])
                await until(lambda: not isinstance(gateway.connections[0], QuickConnection))
            await client.send(asked[cut_at:])
            answer = await client.answer()
            assert (answer.status, answer.body[-14:]) == (200, b"data: [DONE]\n\n")
            [connection] = gateway.connections
            assert type(connection) is reads
            await gateway.idle()
        writer.close()
        await writer.wait_closed()
    with pytest.raises(ssl.SSLError):
        server_tls(str(own), str(own))
    with pytest.raises(OSError, match="No such file"):
        server_tls(str(own), str(tmp_path / "missing.pem"))
