"""A client's connection without a parser: known heads are answered as aiohttp's connection answers them, however they
are cut; whoever leaves, pauses or lingers is treated alike; and nothing is taken for a request that is none."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.access.keys import KeyEntry, Keyring
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.downstream.client_socket import KEEPALIVE_S, LINGER_S
from proxy.downstream.connection import ClientConnection
from proxy.downstream.quick_connection import AHEAD_BYTES, QuickConnection
from proxy.telemetry.record import EndState, Phase
from tests.support.client_line import MAX_BODY_BYTES, ClientTransport, Office, office, settled
from tests.support.memory_line import Clock, cuts, turns
from tests.support.raw_client import RawClient, chat, get, post, raw_client
from tests.support.records import in_flight, until
from tests.support.served import Served, one_route, served
from tests.support.stages import stage
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    ROLE,
    STOP,
    Peer,
    answer,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

CHAT = "/v1/chat/completions"
WHOLE = chat(stream=False)
BOTH = pytest.mark.parametrize("quick", [True, False], ids=["quick", "aiohttp's"])


# ---- through the whole gateway ----


async def model_server(peer: Peer) -> None:
    """Streams where it is asked to, fails where it is told to, else answers in one piece."""
    while True:
        body = (await peer.request()).body.replace(b" ", b"")
        if b'"fail"' in body:
            await peer.send(answer(500, b'{"error":{"message":"broken"}}'))
        elif b'"stream":true' in body:
            await peer.send(OK_EVENTS, chunk(ROLE + content("hi")), chunk(STOP + DONE) + LAST_CHUNK)
        else:
            await peer.send(answer(201, b'{"choices":[]}', b"X-Vendor: 1"))


def reader_of(gateway: Served) -> type:
    """What reads the connection that was made last."""
    return type(gateway.connections[-1])


CHANGING = ("date", "x-request-id", "x-penstock-stream")


async def told(client: RawClient) -> tuple[int, dict[str, str], bytes]:
    """An answer, less what is never the same."""
    answered = await client.answer()
    assert answered.whole
    headers = {name: value for name, value in answered.headers.items() if name not in CHANGING}
    return answered.status, headers, re.sub(rb"req_[0-9a-f]{24}", b"", answered.body)


ALIKE: dict[str, tuple[bytes, int]] = {
    "an answer in one piece": (post(CHAT, WHOLE), 201),
    "a stream": (post(CHAT, chat()), 200),
    "another endpoint": (post("/v1/embeddings", {"model": "m"}), 201),
    "stages": (post("/stream/v1/chat", stage()), 200),
    "an unknown model": (post(CHAT, chat("none")), 404),
    "an upstream's error": (post(CHAT, chat(stream=False, fail="fail")), 500),
    "no JSON": (post(CHAT, b"{"), 400),
    "no body": (post(CHAT, b""), 400),
    "no model": (post(CHAT, {}), 400),
    "too large": (post(CHAT, b"x" * 3000), 413),
    "from a page": (post(CHAT, WHOLE, "Origin: http://localhost:3000"), 201),
    "its own request id": (post(CHAT, WHOLE, "X-Request-ID: mine"), 201),
    "HTTP/1.0": (post(CHAT, chat()).replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
}
CLOSING = ("too large", "HTTP/1.0")


@pytest.mark.parametrize("case", ALIKE)
async def test_a_head_that_comes_again_is_answered_as_it_was_at_first(case: str, tmp_path: Path) -> None:
    request, status = ALIKE[case]
    answers, readers = [], []
    async with (
        scripted_upstream(model_server) as upstream,
        served(one_route(upstream.url, server="port: 0\nmax_body: 2KiB"), tmp_path) as gateway,
    ):
        for _ in range(2):
            async with raw_client(gateway.port) as client:
                for _ in range(2):
                    await client.send(request)
                    answers.append(await told(client))
                    if case in CLOSING:
                        assert await client.rest() == b""
                        break
                    readers.append(reader_of(gateway))
                    await gateway.idle()
                else:
                    await client.send(get("/v1/models"))
                    assert (await client.answer("GET")).status == 200
            await until(lambda: gateway.connections == [])
        ends = [
            (each.end_state, each.bytes_in, each.bytes_out) for each in gateway.records if each.path != "/v1/models"
        ]
    assert answers[0][0] == status
    assert answers == [answers[0]] * (2 if case in CLOSING else 4)
    assert ends == [ends[0]] * len(answers)
    assert readers == ([] if case in CLOSING else [ClientConnection, *[QuickConnection] * 3])


@pytest.mark.parametrize("stream", [True, False])
async def test_known_requests_need_no_parser_on_the_same_connection_nor_on_another(
    stream: bool, tmp_path: Path
) -> None:
    async with (
        scripted_upstream(model_server) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        readers = []
        for _ in range(2):
            async with raw_client(gateway.port) as client:
                for text in ("hi", "a longer text"):
                    await client.send(post(CHAT, chat(stream=stream, user=text)))
                    assert (await client.answer()).whole
                    readers.append(reader_of(gateway))
                    await gateway.idle()
                await client.send(get("/v1/models"))
                assert (await client.answer("GET")).status == 200
                readers.append(reader_of(gateway))
                await client.send(post(CHAT, chat(stream=stream)))
                assert (await client.answer()).whole
            await until(lambda: gateway.connections == [])
        assert [request.body.count(b"a longer text") for request in upstream.requests] == [0, 1, 0] * 2
    assert readers[:3] == [ClientConnection, QuickConnection, ClientConnection]
    assert readers[3:] == [QuickConnection, QuickConnection, ClientConnection]


async def test_known_requests_in_one_read_are_answered_one_after_the_other(tmp_path: Path) -> None:
    asked = [post(CHAT, chat(stream=number % 2 == 0, user=f"<{number}>")) for number in range(8)]
    async with (
        scripted_upstream(model_server) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(asked[0])
        await client.answer()
        await gateway.idle()
        await client.send(b"".join(asked))
        statuses = [(await client.answer()).status for _ in asked]
        assert reader_of(gateway) is QuickConnection
        numbers = [int(request.body.partition(b"<")[2].partition(b">")[0]) for request in upstream.requests]
    assert statuses == [200, 201] * 4
    assert numbers == [0, *range(8)]


KEYS = "auth: {keys: [{name: good, key: sk-good}, {name: gone, key: sk-gone}]}\n"


async def test_a_wrong_key_is_refused_behind_a_good_one_with_the_same_head(tmp_path: Path) -> None:
    said = [("good", 201), ("good", 201), ("goof", 401), ("good", 201), ("gone", 201), ("goof", 401), ("gone", 201)]
    async with (
        scripted_upstream(model_server) as upstream,
        served(one_route(upstream.url) + KEYS, tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        for key, status in said:
            await client.send(post(CHAT, WHOLE, f"x-api-key: sk-{key}"))
            assert (await client.answer()).status == status
        assert len(upstream.requests) == 5
    assert [record.key for record in gateway.records] == [key if status == 201 else None for key, status in said]


async def test_the_host_policy_is_asked_for_known_heads_too(tmp_path: Path) -> None:
    request = post(CHAT, WHOLE).replace(b"127.0.0.1", b"ours.example")
    server = "port: 0\nallowed_hosts: [ours.example]"
    async with (
        scripted_upstream(model_server) as upstream,
        served(one_route(upstream.url, server=server), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        for _ in range(2):
            await client.send(request)
            assert (await client.answer()).status == 201
            await gateway.idle()
        gateway.gateway._gate.hosts = HostPolicy([], loopback_bind=True)
        await client.send(request)
        assert (await client.answer()).status == 403
        assert reader_of(gateway) is QuickConnection
        assert len(upstream.requests) == 2


async def learn(gateway: Served, request: bytes) -> None:
    """Let the gateway know this head, and forget that it was asked."""
    async with raw_client(gateway.port) as client:
        await client.send(request)
        await client.answer()
    await until(lambda: gateway.connections == [])
    gateway.records.clear()


class Stopping:
    """A model server that answers the first request, and the second one to `upto` only; `closed` when that has gone."""

    def __init__(self, *upto: bytes) -> None:
        self._upto = upto
        self._answered = 0
        self.sent = asyncio.Event()
        self.closed = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            if self._answered == 1:
                await peer.send(*self._upto)
                self.sent.set()
                await peer.closed()
                self.closed.set()
                return
            self._answered += 1
            await peer.send(OK_EVENTS, chunk(content("hi")), chunk(STOP + DONE) + LAST_CHUNK)


LEAVING = {Phase.HEADERS: (), Phase.FIRST_EVENT: (OK_EVENTS,), Phase.STREAM: (OK_EVENTS, chunk(content("hi")))}


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("phase", LEAVING)
async def test_a_client_that_leaves_takes_its_upstream_with_it(phase: Phase, reset: bool, tmp_path: Path) -> None:
    stopping = Stopping(*LEAVING[phase])
    async with (
        scripted_upstream(stopping.script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        await learn(gateway, post(CHAT, chat()))
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat()))
            await stopping.sent.wait()
            if phase is Phase.STREAM:
                await client.reader.readuntil(b"hi")
            await until(lambda: in_flight(gateway) == 1)
            assert reader_of(gateway) is QuickConnection
            client.leave(reset=reset)
            await asyncio.wait_for(stopping.closed.wait(), 10)
            record = await gateway.record()
        assert (record.end_state, record.status) == (EndState.CLIENT_CLOSED, 499)
        await until(lambda: in_flight(gateway) == 0 and gateway.connections == [])


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
async def test_a_client_that_leaves_within_its_body_never_reaches_a_replica(reset: bool, tmp_path: Path) -> None:
    async with (
        scripted_upstream(model_server) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        await learn(gateway, post(CHAT, WHOLE))
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, WHOLE)[:-5])
            await until(lambda: [each.visitor is not None for each in gateway.connections] == [True])
            assert reader_of(gateway) is QuickConnection
            client.leave(reset=reset)
            record = await gateway.record()
        assert (record.end_state, record.phase) == (EndState.CLIENT_CLOSED, Phase.BODY)
        assert len(upstream.requests) == 1
        await until(lambda: gateway.connections == [])


PIECES = 160
PIECE = "x" * 64 * 1024
"""All of them are 10 MB: the kernel takes some 2 MB on each side of the gateway."""


async def test_a_slow_reader_pauses_its_upstream_and_gets_all_of_it_later(tmp_path: Path) -> None:
    said = 0

    async def script(peer: Peer) -> None:
        nonlocal said
        await peer.request()
        await peer.send(OK_EVENTS, chunk(STOP + DONE) + LAST_CHUNK)
        while True:
            await peer.request()
            await peer.send(OK_EVENTS)
            for number in range(PIECES):
                await peer.send(chunk(content(f"<{number}>{PIECE}")))
                said += 1
            await peer.send(chunk(STOP + DONE), LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        await learn(gateway, post(CHAT, chat()))
        async with raw_client(gateway.port) as client:
            client.pause()
            await client.send(post(CHAT, chat()))
            await until(lambda: any(each.writing_paused for each in gateway.connections))
            assert reader_of(gateway) is QuickConnection
            before = -1
            while said > before:
                before = said
                await asyncio.sleep(0.1)
            assert said < PIECES
            client.resume()
            answered = await client.answer()
    assert answered.whole
    assert answered.body == b"".join(content(f"<{number}>{PIECE}") for number in range(PIECES)) + STOP + DONE


async def test_a_drain_finishes_what_is_served_and_a_stop_closes_the_idle(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(OK_EVENTS, chunk(content("hi")))
            if b"wait" in request.body:
                await go_on.wait()
            await peer.send(chunk(STOP + DONE) + LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        await learn(gateway, post(CHAT, chat()))
        async with raw_client(gateway.port) as idle, raw_client(gateway.port) as busy:
            await idle.send(post(CHAT, chat()))
            assert (await idle.answer()).whole
            await busy.send(post(CHAT, chat(user="wait")))
            await busy.reader.readuntil(b"hi")
            assert [type(each) for each in gateway.connections] == [QuickConnection] * 2
            draining = asyncio.ensure_future(gateway.gateway.drain())
            await asyncio.sleep(0)
            go_on.set()
            await draining
            assert (await busy.reader.readuntil(LAST_CHUNK)).endswith(DONE + b"\r\n" + LAST_CHUNK)
            await gateway.gateway.stop()
            assert await idle.rest() == await busy.rest() == b""
    assert [record.end_state for record in gateway.records] == [EndState.COMPLETED] * 2


# ---- in memory: each read is the test's ----

K = b"POST /k HTTP/1.1\r\nHost: 127.0.0.1\r\n"
K2 = b"POST /k2 HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b 7\r\n"


def sized(head: bytes, body: bytes = b"") -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    return K + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def bodies(there: Office) -> list[bytes]:
    """What was served, since `prepared`."""
    return [body for _, body, _ in there.desk.served if body != b"learnt"]


async def prepared(there: Office) -> ClientTransport:
    """A new client of a server that has learnt both heads."""
    await there.say(sized(K, b"learnt"))
    await there.say(sized(K2, b"learnt"))
    return there.line()


ASKED = sized(K, b'{"model": "m"}')


@pytest.mark.parametrize("settles", [True, False])
async def test_a_known_request_cut_anywhere_is_the_same_request(settles: bool) -> None:
    async with office() as there:
        line = await prepared(there)
        line.arrive(ASKED)
        await settled(line)
        expected = line.said
        for pieces in cuts(ASKED):
            line = there.line()
            for piece in pieces:
                line.arrive(piece)
                await turns(4 if settles else 1)
            await settled(line)
            assert line.said == expected
            assert line.is_quick == (len(pieces[0]) >= ASKED.index(b"{"))
        assert set(bodies(there)) == {b'{"model": "m"}'}
        assert len(bodies(there)) == 1 + len(cuts(ASKED))


@pytest.mark.parametrize("at_once", [True, False])
async def test_known_requests_one_behind_the_other_are_served_in_order_however_they_are_cut(at_once: bool) -> None:
    asked = [sized(K, b"one"), sized(K2, b"two"), sized(K), sized(K2, b"four" * 20), sized(K, b"five")]
    data = b"".join(asked)
    async with office() as there:
        line = await prepared(there)
        line.arrive(data)
        await settled(line)
        assert line.is_quick
        assert bodies(there) == [b"one", b"two", b"", b"four" * 20, b"five"]
        expected = line.said
        for pieces in cuts(data):
            line = there.line()
            for piece in pieces:
                line.arrive(piece)
                await turns(0 if at_once else 3)
            await settled(line)
            assert line.said == expected


async def test_a_client_that_sends_far_ahead_is_read_no_further_until_it_is_answered() -> None:
    body = b"x" * 1000
    async with office() as there:
        line = await prepared(there)
        there.desk.may_answer.clear()
        line.arrive(*[sized(K, b"%d " % number + body) for number in range(200)])
        await settled(line)
        assert not line.reading
        ahead = len(line.protocol._ahead)
        assert AHEAD_BYTES < ahead < AHEAD_BYTES + 2 * len(body)
        assert len(bodies(there)) == 1
        there.desk.may_answer.set()
        await until(lambda: len(bodies(there)) == 200)
        await settled(line)
        assert line.is_quick
        assert line.reading
        assert bodies(there) == [b"%d " % number + body for number in range(200)]
        assert line.said.count(b"HTTP/1.1 200 OK") == 200


async def test_a_client_that_was_read_no_further_goes_on_with_something_else() -> None:
    async with office() as there:
        line = await prepared(there)
        there.desk.may_answer.clear()
        line.arrive(sized(K, b"one"), b"GET /other HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"x" * 15_000, b"\r\n\r\n")
        line.arrive(*[sized(K, b"y" * 9_000)] * 12)
        await settled(line)
        assert not line.reading
        there.desk.may_answer.set()
        await until(lambda: len(bodies(there)) == 14)
        await settled(line)
        assert not line.is_quick
        assert line.reading
        assert bodies(there) == [b"one", b"", *[b"y" * 9_000] * 12]


async def test_who_waits_for_a_slow_reader_hears_of_it_whoever_reads_its_requests() -> None:
    heard: list[bool] = []
    async with office() as there:
        line = await prepared(there)
        line.arrive(ASKED)
        await settled(line)
        line.fall_behind()
        line.arrive(get("/g"))
        await settled(line)
        assert not line.is_quick
        line.protocol.tell_of_writing(heard.append)
        line.catch_up()
        line.fall_behind()
    assert heard == [False, True]


async def test_a_body_that_pauses_is_given_up_and_the_connection_after_it() -> None:
    ends: list[bytes] = []
    for quick in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            clock = Clock(patch)
            async with office(knows_heads=quick, pause_s=30.0) as there:
                line = await prepared(there)
                line.arrive(ASKED[:-5])
                await settled(line)
                assert line.is_quick == quick
                await clock.advance(29.0)
                line.arrive(ASKED[-5:-2])
                await settled(line)
                await clock.advance(29.0)
                assert line.sent == b""
                await clock.advance(2.0)
                await settled(line)
                assert line.sent.startswith(b"HTTP/1.1 408 ")
                assert not line.closed  # what is still sent is read, or the answer would be lost with it
                await clock.advance(LINGER_S + 0.1)
                await settled(line)
                assert line.closed
                assert bodies(there) == []
                ends.append(line.said)
    assert ends[0] == ends[1]


GOOD = KeyEntry.from_key("good", "sk-good")
OTHER = KeyEntry.from_key("other", "sk-other")
NO_PAGES = OriginPolicy([], loopback_bind=False)


@BOTH
async def test_a_key_that_was_taken_away_opens_nothing_any_more(quick: bool) -> None:
    asked = sized(K + b"x-api-key: sk-good\r\n", b"secret")
    async with office(knows_heads=quick, keys=Keyring([GOOD, OTHER])) as there:
        line = await there.say(asked, asked)
        assert line.is_quick == quick
        there.desk.gate.change(NO_PAGES, Keyring([OTHER]))
        line.sent = b""
        line.arrive(asked)
        await settled(line)
        assert line.sent.startswith(b"HTTP/1.1 401 ")
        there.desk.gate.change(NO_PAGES, Keyring([GOOD, OTHER]))
        line.arrive(asked, asked)
        await settled(line)
    assert len(bodies(there)) == 4


@BOTH
async def test_a_refusal_within_a_body_reaches_a_client_that_is_still_sending(quick: bool) -> None:
    """Closed with something unread, a connection would take its answer along."""
    asked = sized(K + b"x-api-key: sk-good\r\n", b"secret")
    async with office(knows_heads=quick, keys=Keyring([GOOD])) as there:
        line = await there.say(asked)
        there.desk.gate.change(NO_PAGES, Keyring([OTHER]))
        line = await there.say(asked[:-3])
        assert line.is_quick == quick
        assert line.sent.startswith(b"HTTP/1.1 401 ")
        assert not line.closed
        there.desk.gate.change(NO_PAGES, Keyring([GOOD]))
        line.arrive(asked[-3:] + asked)
        await settled(line)
        assert line.sent.endswith(b"POST /k 6 secret")
        assert not line.closed
    assert bodies(there) == [b"secret"] * 2


async def test_a_head_is_never_learnt_with_what_another_request_of_its_read_may_do() -> None:
    refused = sized(K + b"x-api-key: sk-wrong\r\n", b"refused")
    async with office(keys=Keyring([GOOD])) as there:
        await there.say(refused + sized(K + b"x-api-key: sk-good\r\n", b"good"))
        assert bodies(there) == [b"good"]
        line = await there.say(refused, refused)
        assert line.sent.count(b"HTTP/1.1 401 ") == 2
        assert bodies(there) == [b"good"]


async def test_a_known_head_means_the_same_visitor_until_the_rules_change() -> None:
    async with office(keys=Keyring([GOOD])) as there:
        asked = sized(K + b"x-api-key: sk-good\r\n", b"secret")
        for _ in range(2):
            await there.say(asked)
        there.desk.gate.change(NO_PAGES, Keyring([GOOD]))
        for _ in range(2):
            await there.say(asked, asked)
        first, again, *later = [visitor for *_, visitor in there.desk.served]
    assert again is first
    assert later[0] is not first
    assert [each is later[0] for each in later] == [True] * 4


@BOTH
async def test_each_client_is_who_its_own_address_says(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        for peer in ("127.0.0.1", "192.0.2.7", "192.0.2.7", "127.0.0.1", ""):
            await there.say(ASKED, peer=peer)
        forwarded = [dict(visitor.forwarded).get("X-Forwarded-For") for *_, visitor in there.desk.served]  # type: ignore[attr-defined]
    assert forwarded == ["127.0.0.1", "192.0.2.7", "192.0.2.7", "127.0.0.1", ""]


@BOTH
async def test_an_idle_connection_is_closed_after_a_while(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with office(knows_heads=quick) as there:
        line = await prepared(there)
        silent = there.line()
        await clock.advance(KEEPALIVE_S - 1)
        line.arrive(ASKED)
        await settled(line)
        assert line.is_quick == quick
        assert not silent.closed
        await clock.advance(1.1)
        assert silent.closed
        assert not line.closed
        await clock.advance(KEEPALIVE_S - 2)
        assert not line.closed
        await clock.advance(1.1)
        assert line.closed
        await turns()
        assert there.server.connections == []


@BOTH
async def test_a_connection_is_not_idle_while_its_request_is_served(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with office(knows_heads=quick) as there:
        line = await prepared(there)
        there.desk.may_answer.clear()
        line.arrive(ASKED)
        await settled(line)
        for _ in range(5):
            await clock.advance(KEEPALIVE_S - 1)
        assert not line.closed
        there.desk.may_answer.set()
        await settled(line)
        assert line.sent.endswith(b'"m"}')
        await clock.advance(KEEPALIVE_S - 1)
        assert not line.closed
        await clock.advance(KEEPALIVE_S + 1)
        assert line.closed


@BOTH
async def test_after_a_close_what_is_served_is_answered_and_nothing_behind_it(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        line = await prepared(there)
        there.desk.may_answer.clear()
        line.arrive(sized(K, b"one"), sized(K, b"two"))
        await settled(line)
        line.protocol.close()
        line.arrive(sized(K, b"three"))
        await settled(line)
        assert not line.closed
        there.desk.may_answer.set()
        await settled(line)
        assert line.closed
        assert line.sent.endswith(b"POST /k 3 one")
        assert bodies(there) == [b"one"]


@pytest.mark.parametrize("ends", ["leaves", "says something else"])
async def test_nothing_is_left_of_a_connection_that_is_gone(ends: str) -> None:
    async with office() as there:
        line = await prepared(there)
        line.arrive(ASKED)
        await settled(line)
        quick = weakref.ref(line.protocol)
        if ends == "leaves":
            line.reset()
            await turns()
            del line
        else:
            line.arrive(get("/g"))
            await settled(line)
        gc.collect()
        assert quick() is None


async def test_part_of_a_known_head_must_be_whole_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with office(head_timeout_s=10.0) as there:
        line = await prepared(there)
        line.arrive(ASKED)
        await settled(line)
        line.arrive(ASKED[:20])
        await clock.advance(9.0)
        assert not line.closed
        await clock.advance(1.1)
        assert b"HTTP/1.1 408 " in line.sent
        assert line.closed


# ---- nothing is taken for a request that is none ----

INNER = sized(K, b"smuggled")
PART = b"POST /part HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost: 127.0.0.1\r\n"
NO_REQUEST: dict[str, tuple[bytes, ...]] = {
    "in a known body": (sized(K, INNER),),
    "in a known body, as a read of its own": (sized(K, INNER)[: -len(INNER)], INNER),
    "in a body with another head": (sized(b"POST /o HTTP/1.1\r\nHost: 127.0.0.1\r\n", INNER)[: -len(INNER)], INNER),
    "in a body without a usual length": (K + b"CONTENT-LENGTH: %d\r\n\r\n" % len(INNER), INNER),
    "in a chunk": (chunked(INNER)[: -len(INNER) - 7], INNER, b"\r\n0\r\n\r\n"),
    "behind a chunked body that goes on": (K + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", INNER),
    "in the trailer": (chunked(b"x")[:-2], INNER),
    "with a length and chunked": (K + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", INNER),
    "behind two lengths": (K + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(INNER), INNER),
    "in a header's value": (PART, INNER),
    "in a header's value behind a known request": (sized(K, b"one") + PART, INNER),
    "in a header's value behind CONNECT": (sized(b"CONNECT h:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n", PART), INNER),
    "in a header's value behind CONNECT, in pieces": (
        b"CONNECT h:1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(PART),
        PART,
        INNER,
    ),
    "in the body of an upgrade": (sized(b"GET /u HTTP/1.1\r\n" + UPGRADE, INNER)[: -len(INNER)], INNER),
    "in a request line": (b"POST /", INNER),
    "behind garbage": (b"x\r\n\r\n", INNER),
    "in a body of two reads": (sized(K, b"ab" + INNER)[: -len(INNER)], INNER),
    "in a body that is too large": (K + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), INNER),
}


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("case", NO_REQUEST)
async def test_what_looks_like_a_known_request_is_none_where_none_begins(case: str, waits: bool) -> None:
    async with office() as there:
        line = await prepared(there)
        for read in NO_REQUEST[case]:
            line.arrive(read)
            await (settled(line) if waits else turns(1))
        await settled(line)
        assert b"smuggled" not in bodies(there)


@BOTH
async def test_the_rest_of_a_header_that_was_begun_during_the_last_answer_is_no_request(quick: bool) -> None:
    async with office(knows_heads=quick) as there:
        line = await prepared(there)
        there.desk.may_answer.clear()
        line.arrive(sized(K, b"one"), PART)
        await settled(line)
        assert line.is_quick == quick
        there.desk.may_answer.set()
        await settled(line)
        line.arrive(INNER)
        await settled(line)
        assert bodies(there) == [b"one"]
        assert b"HTTP/1.0 400 " in line.sent
        assert line.closed


MESSAGES = [
    sized(K, b"one"),
    sized(K),
    sized(K, INNER),
    sized(K2, b"two"),
    sized(K2, PART),
    K + b"Content-Length: 0003\r\n\r\nabc",
    K + b"Content-Length: %d\r\n\r\nabc" % (len(INNER) + 3),
    *(K + length + b"3\r\n\r\nabc" for length in (b"Content-length: ", b"CONTENT-LENGTH: ", b"Content-Length:")),
    K + b"Content-Length: +3\r\n\r\nabc",
    K + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    K + b"Content-Length: 3\r\nContent-Length: 9\r\n\r\nabc",
    K + b"Content-Length: 200000\r\n\r\nabc",
    K + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
    K + b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
    K + b"X: a\r\n Content-Length: 3\r\n\r\nabc",
    chunked(INNER),
    get("/g"),
    sized(b"GET /g HTTP/1.1\r\nHost: 127.0.0.1\r\n", PART),
    sized(b"HEAD /k HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"abc"),
    *(
        sized(b"POST /k HTTP/1.0\r\nHost: 127.0.0.1\r\n" + stays, b"old")
        for stays in (b"", b"Connection: keep-alive\r\n")
    ),
    sized(K + b"Connection: close\r\n", b"last"),
    sized(K + b"Expect: 100-continue\r\n", b"abc"),
    sized(K + b"Expect: magic\r\n", b"abc"),
    sized(K + b"Content-Encoding: gzip\r\n", b"abc"),
    *(sized(b"CONNECT h:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n", behind) for behind in (b"", PART, INNER)),
    *(sized(b"GET /u HTTP/1.1\r\n" + UPGRADE, behind) for behind in (b"", PART)),
    b"GET /u HTTP/1.1\r\n" + UPGRADE + b"\r\n",
    INNER[:-5],
    INNER[:20],
    PART,
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"X",
    b"garbage\r\n\r\n",
]
Reads = list[tuple[bytes, bool]]


@st.composite
def conversations(draw: st.DrawFn) -> Reads:
    """What a client sends: messages, some of them cut, some of them in one read; and whether it waits after each."""
    known = st.sampled_from(MESSAGES[:5])
    data = b"".join(draw(st.lists(known | st.sampled_from(MESSAGES), min_size=1, max_size=5)))
    ends = draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=4))
    edges = [0, *sorted(ends - {len(data)}), len(data)]
    return [(data[a:b], draw(st.booleans())) for a, b in pairwise(edges)]


async def played(reads: Reads, *, knows_heads: bool) -> tuple[bytes, bool, list[tuple[str, bytes]]]:
    """What a client gets that sends this, whether its connection was closed, and what was served."""
    async with office(knows_heads=knows_heads) as there:
        line = await prepared(there)
        for data, waits in reads:
            line.arrive(data)
            await (settled(line) if waits else turns(1))
        await settled(line)
        return line.said, line.closed, [(target, body) for target, body, _ in there.desk.served]


async def compared(reads: Reads) -> None:
    """Aiohttp drops whole requests that stand in one read with a broken one; byte by byte, it drops none. Whoever needs
    no parser may answer more of them than the one, and never anything that the other does not."""
    said, closed, mine = await played(reads, knows_heads=True)
    said_alone, closed_alone, alone = await played(reads, knows_heads=False)
    *_, by_byte = await played([(b"%c" % byte, False) for data, _ in reads for byte in data], knows_heads=False)
    assert mine[: len(alone)] == alone
    assert by_byte[: len(mine)] == mine
    if re.search(rb"HTTP/1\.[01] 400 ", said_alone) is None:
        assert (said, closed) == (said_alone, closed_alone)
    else:
        assert closed
        assert re.findall(rb"HTTP/1\.[01] (\d{3}) ", said)[-1] == b"400"


@settings(deadline=None, max_examples=60)
@given(conversations())
def test_whatever_is_sent_is_served_as_by_a_server_that_knows_no_heads(reads: Reads) -> None:
    asyncio.run(compared(reads))
