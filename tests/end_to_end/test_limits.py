"""What is taken on at once, over real sockets: who waits, who is told to come back, and who leaves while waiting."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.telemetry.record import EndState, Phase
from tests.support.raw_client import RawAnswer, ask, chat, post, raw_client
from tests.support.served import Served, one_route, served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    Peer,
    ScriptedUpstream,
    answer,
    answering,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT = "/v1/chat/completions"
USAGE = b'{"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":60}}'
KEYED = """
server: {{port: 0}}
auth: {{keys: [{{name: web, key: sk-web, limits: {limits}}}, {{name: other, key: sk-other}}]}}
routes: {{m: "{url}"}}
"""


class Holding:
    """A replica whose answers begin at once and end when they are let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK_EVENTS, chunk(content("x")))
            await self.go_on.wait()
            await peer.send(chunk(DONE), LAST_CHUNK)


@asynccontextmanager
async def held(tmp_path: Path, limits: str, *settings: str) -> AsyncIterator[tuple[Holding, Served, ScriptedUpstream]]:
    holding = Holding()
    async with scripted_upstream(holding.script) as upstream:
        routes = one_route(upstream.url, f"limits: {limits}", *settings)
        async with asyncio.timeout(10), served(routes, tmp_path) as gateway:
            yield holding, gateway, upstream


def depth(gateway: Served) -> float:
    [value] = gateway.gateway.figures()["penstock_queue_depth"][("m",)]
    return value


async def until_waiting(gateway: Served, count: int) -> None:
    while depth(gateway) != count:
        await asyncio.sleep(0.002)


async def asking(gateway: Served, upstream: ScriptedUpstream) -> asyncio.Task[RawAnswer]:
    """A request that a replica has."""
    before = len(upstream.requests)
    task = asyncio.create_task(ask(gateway.port, post(CHAT, chat())))
    while len(upstream.requests) == before:
        await asyncio.sleep(0.002)
    return task


async def test_a_request_that_finds_no_place_waits_and_is_served(tmp_path: Path) -> None:
    async with held(tmp_path, "{streams: 1}") as (holding, gateway, upstream):
        first = await asking(gateway, upstream)
        second = asyncio.create_task(ask(gateway.port, post(CHAT, chat())))
        await until_waiting(gateway, 1)
        await asyncio.sleep(0.02)
        assert len(upstream.requests) == 1
        holding.go_on.set()
        assert (await first).body == (await second).body == content("x") + DONE
        waited, served_at_once = await gateway.record(1), await gateway.record(0)
    assert (served_at_once.queue_ms, waited.end_state) == (0.0, EndState.COMPLETED)
    assert waited.queue_ms >= 20


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ("{streams: 1, queue: 0}", 429, "queue_full"),
        ("{streams: 1, queue_timeout: 30ms}", 503, "queue_timeout"),
    ],
)
async def test_who_gets_no_place_is_told_when_to_come_back(limits: str, status: int, code: str, tmp_path: Path) -> None:
    async with held(tmp_path, limits) as (_, gateway, upstream):
        first = await asking(gateway, upstream)
        refused = await ask(gateway.port, post(CHAT, chat()))
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (status, code)
        assert int(refused.headers["retry-after"]) >= 1
        assert (refused.headers["x-penstock-source"], "x-penstock-replica" in refused.headers) == ("gateway", False)
        async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
            await socket.send(json.dumps(chat()))
            told = json.loads(await socket.recv())
            assert (told["status"], told["error"]["code"]) == (status, code)
        first.cancel()
        record = await gateway.record()
    assert (record.end_state, record.attempts) == (EndState.SHED, 0)


@pytest.mark.parametrize("how", ["FIN", "RST", "WebSocket"])
async def test_a_client_that_leaves_the_queue_leaves_it_at_once(how: str, tmp_path: Path) -> None:
    async with held(tmp_path, "{streams: 1}") as (_, gateway, upstream):
        first = await asking(gateway, upstream)
        if how == "WebSocket":
            async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
                await socket.send(json.dumps(chat()))
                await until_waiting(gateway, 1)
        else:
            async with raw_client(gateway.port) as client:
                await client.send(post(CHAT, chat()))
                await until_waiting(gateway, 1)
                client.leave(reset=how == "RST")
                async with asyncio.timeout(0.1):
                    await until_waiting(gateway, 0)
        await until_waiting(gateway, 0)
        record = await gateway.record()
        assert (record.end_state, record.phase, record.attempts) == (EndState.CLIENT_CLOSED, Phase.QUEUE, 0)
        assert len(upstream.requests) == 1
        first.cancel()


async def test_a_client_that_waits_long_hears_that_its_request_lives(tmp_path: Path) -> None:
    async with held(tmp_path, "{streams: 1}", "keepalive: 30ms") as (holding, gateway, upstream):
        first = await asking(gateway, upstream)
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat()))
            await client.reader.readuntil(b": ping\n")
            holding.go_on.set()
            rest = await client.reader.readuntil(b"[DONE]")
            assert content("x") in rest
        await first


async def test_a_client_that_leaves_during_a_backoff_ends_it(tmp_path: Path) -> None:
    busy = answering(answer(429, b"{}", b"Retry-After: 4"))
    async with scripted_upstream(busy) as upstream:
        routes = one_route(upstream.url, "retry: {attempts: 3}")
        async with served(routes, tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat()))
            while not upstream.requests:
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.02)
            client.leave()
            async with asyncio.timeout(0.1):
                record = await gateway.record()
    assert (record.end_state, record.attempts, len(upstream.requests)) == (EndState.CLIENT_CLOSED, 1, 1)


# ---- a key's own limits ----


async def told(gateway: Served, key: str = "sk-web") -> tuple[int, str | None]:
    """Status and code of one request of this key."""
    said = await ask(gateway.port, post(CHAT, chat(stream=False), f"Authorization: Bearer {key}"))
    if said.status == 429:
        assert int(said.headers["retry-after"]) >= 1
    return said.status, json.loads(said.body).get("error", {}).get("code")


@pytest.mark.parametrize("limits", ["{requests_per_minute: 2}", "{tokens_per_minute: 150}"])
async def test_a_key_that_has_used_what_it_may_is_told_when_to_come_back(limits: str, tmp_path: Path) -> None:
    async with scripted_upstream(answering(answer(200, USAGE))) as upstream:
        async with served(KEYED.format(url=upstream.url, limits=limits), tmp_path) as gateway:
            assert [await told(gateway) for _ in range(2)] == [(200, None)] * 2
            assert await told(gateway) == (429, "rate_limit_exceeded")
            assert await told(gateway, "sk-other") == (200, None)
            record = await gateway.record(2)
        assert len(upstream.requests) == 3
    assert (record.end_state, record.key, record.attempts) == (EndState.SHED, "web", 0)


async def test_a_key_has_so_many_streams_at_once(tmp_path: Path) -> None:
    holding = Holding()
    async with scripted_upstream(holding.script) as upstream:
        async with served(KEYED.format(url=upstream.url, limits="{streams: 1}"), tmp_path) as gateway:
            request = post(CHAT, chat(), "Authorization: Bearer sk-web")
            async with raw_client(gateway.port) as client:
                await client.send(request)
                await client.reader.readuntil(b'"x"')
                assert await told(gateway) == (429, "too_many_streams")
            await gateway.record(1)  # it has left
            holding.go_on.set()
            assert (await ask(gateway.port, request)).body == content("x") + DONE
