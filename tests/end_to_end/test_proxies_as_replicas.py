"""nginx and haproxy between the gateway and a model server, configured as docs/behind-a-proxy.md says: their reloads,
the error pages they make themselves, and connections that they close while nobody asks."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import websockets

from tests.support.nginx_and_haproxy import OtherProxy, documented, running_haproxy, running_nginx, served_by
from tests.support.raw_client import RawAnswer, RawClient, ask, chat, post, raw_client
from tests.support.reserved_port import reserved_port
from tests.support.served import Served, one_route, served
from tests.support.soak_clients import hear_chat, read_chat
from tests.support.soak_tally import Told
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Peer,
    answering,
    chunk,
    content,
    saying,
    scripted_upstream,
)
from tests.support.word_by_word import Model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.nginx_and_haproxy import Running

CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0
WHOLE = (OK_EVENTS, chunk(content("hello") + STOP + DONE) + LAST_CHUNK)
PAGE = {"nginx": 502, "haproxy": 503}
"""What they answer when nobody is behind them."""
RUNNING: dict[str, Running] = {"nginx": running_nginx, "haproxy": running_haproxy}

both = pytest.mark.parametrize("kind", RUNNING)


def sections(kind: str, *changes: tuple[str, str]) -> str:
    """The document's, changed so."""
    text = documented(kind, 1)
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@asynccontextmanager
async def world(
    kind: str, url: str, folder: Path, *settings: str, changes: tuple[tuple[str, str], ...] = ()
) -> AsyncIterator[tuple[Served, OtherProxy]]:
    """A gateway whose only replica is a proxy in front of this model server."""
    async with RUNNING[kind](served_by(sections(kind, *changes), url), folder) as proxy:
        async with served(one_route(proxy.url, "health: none", *settings), folder) as gateway:
            yield gateway, proxy


async def hears(client: RawClient, told: bytes, so_far: bytes = b"") -> bytes:
    """Reads until this has been told."""
    async with asyncio.timeout(PATIENCE_S):
        while told not in so_far:
            piece = await client.reader.read(65536)
            assert piece, so_far
            so_far += piece
    return so_far


@both
async def test_events_come_one_by_one(kind: str, tmp_path: Path) -> None:
    model = Model()
    async with scripted_upstream(model.script) as upstream, world(kind, upstream.url, tmp_path) as (gateway, _):
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat()))
            heard = b""
            for word in ("one", "two", "three"):
                model.say(word)
                heard = await hears(client, content(word), heard)
            model.stop()
            await hears(client, b"0\r\n\r\n", heard)


async def test_a_reload_of_nginx_cuts_no_stream_and_fails_no_request(tmp_path: Path) -> None:
    model = Model()

    async def script(peer: Peer) -> None:
        if upstream.connections == 1:
            await model.script(peer)
        else:
            await answering(*WHOLE)(peer)

    # One try only: a connection that the old worker closes while it is idle is no failure.
    async with scripted_upstream(script) as upstream, world("nginx", upstream.url, tmp_path) as (gateway, nginx):
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat()))
            model.say("before")
            heard = await hears(client, content("before"))
            for _ in range(3):
                nginx.reload()
                for _ in range(20):
                    assert (await ask(gateway.port, post(CHAT, chat()))).status == 200
            model.say("after")
            model.stop()
            heard = await hears(client, b"0\r\n\r\n", heard)
        assert content("after") in heard
        assert b"error" not in heard
    assert [record.end_state for record in gateway.records] == ["completed"] * 61


@both
@pytest.mark.parametrize("stream", [True, False])
async def test_a_page_of_its_own_is_an_upstreams_error(kind: str, stream: bool, tmp_path: Path) -> None:
    with reserved_port() as nobody:
        async with world(kind, f"http://127.0.0.1:{nobody}", tmp_path) as (gateway, _):
            answer = await ask(gateway.port, post(CHAT, chat(stream=stream)))
    assert answer.status == PAGE[kind]
    assert answer.headers["x-penstock-source"] == "upstream"
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.body.startswith(b"<html>")


@both
async def test_on_a_websocket_it_is_an_error_frame_with_its_status(kind: str, tmp_path: Path) -> None:
    with reserved_port() as nobody:
        async with world(kind, f"http://127.0.0.1:{nobody}", tmp_path) as (gateway, _):
            async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
                await socket.send(json.dumps(chat()))
                frame = json.loads(await socket.recv())
    assert frame["status"] == PAGE[kind]
    assert frame["error"]["message"]
    assert "<html>" not in str(frame)


IMPATIENT = {
    "nginx": ("proxy_read_timeout 10m;", "proxy_read_timeout 200ms;"),
    "haproxy": ("timeout server 10m", "timeout server 200ms"),
}


@both
async def test_its_504_is_one_too(kind: str, tmp_path: Path) -> None:
    async with scripted_upstream(saying(end="stall")) as upstream:
        async with world(kind, upstream.url, tmp_path, changes=(IMPATIENT[kind],)) as (gateway, _):
            answer = await ask(gateway.port, post(CHAT, chat()))
    assert (answer.status, answer.headers["x-penstock-source"]) == (504, "upstream")
    assert b"504" in answer.body


@both
async def test_another_replica_is_asked_instead(kind: str, tmp_path: Path) -> None:
    with reserved_port() as nobody:
        async with scripted_upstream(answering(*WHOLE)) as upstream:
            bad = served_by(sections(kind), f"http://127.0.0.1:{nobody}")
            async with RUNNING[kind](bad, tmp_path) as proxy:
                routes = (
                    f"server: {{port: 0}}\nroutes: {{m: {{replicas: ['{proxy.url}', '{upstream.url}'], "
                    "health: none, balance: round_robin}}\n"
                )
                async with served(routes, tmp_path) as gateway:
                    answers = [await ask(gateway.port, post(CHAT, chat())) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert "2" in {answer.headers["x-penstock-attempts"] for answer in answers}


async def over_http(gateway: Served) -> Told:
    return read_chat(await ask(gateway.port, post(CHAT, chat())))


async def over_bare(gateway: Served) -> Told:
    told = Told()
    async with asyncio.timeout(PATIENCE_S), websockets.connect(gateway.ws_url + "/v1/ws") as socket:
        await socket.send(json.dumps(chat()))
        while not told.is_over:
            hear_chat(told, str(await socket.recv()))
    return told


@both
@pytest.mark.parametrize("end", ["end", "reset", "stall"])
@pytest.mark.parametrize("client", [over_http, over_bare])
async def test_a_stream_that_it_cuts_off_ends_with_one_error(
    kind: str, end: str, client: Callable[[Served], Awaitable[Told]], tmp_path: Path
) -> None:
    script = saying(OK_EVENTS, chunk(content("one")), end=end)
    async with scripted_upstream(script) as upstream:
        async with world(kind, upstream.url, tmp_path, changes=(IMPATIENT[kind],)) as (gateway, _):
            told = await client(gateway)
    assert told.said == ["one"] or (end == "reset" and told.said == [])  # a reset may take it along
    assert told.errors == ["upstream_truncated"]
    assert not told.ended


SHORT_TEMPERED = {
    "nginx": ("keepalive_timeout 75s;", "keepalive_timeout 60ms; keepalive_requests 5;"),
    "haproxy": ("timeout http-keep-alive 75s", "timeout http-keep-alive 60ms"),
}


@both
async def test_connections_that_it_closes_while_idle_cost_no_request(kind: str, tmp_path: Path) -> None:
    """Each client asks again just when the connection that it would get is being closed."""

    async def asks(gateway: Served, rng: Random) -> list[RawAnswer]:
        answers = []
        async with raw_client(gateway.port) as client:
            for _ in range(20):
                await client.send(post(CHAT, chat()))
                answers.append(await client.answer())
                await asyncio.sleep(rng.uniform(0.05, 0.07))
        return answers

    async with scripted_upstream(answering(*WHOLE)) as upstream:
        async with world(kind, upstream.url, tmp_path, changes=(SHORT_TEMPERED[kind],)) as (gateway, _):
            answers = await asyncio.gather(*(asks(gateway, Random(number)) for number in range(6)))
    assert {answer.status for each in answers for answer in each} == {200}
    assert [record.end_state for record in gateway.records] == ["completed"] * 120
