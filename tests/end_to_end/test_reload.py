"""The file changes while requests run: they go on as they began, the next ones go by what it says now."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import websockets

from tests.support.gateway import RunningGateway, running_gateway
from tests.support.prometheus import scrape
from tests.support.raw_client import RawAnswer, RawClient, ask, chat, get, post, raw_client
from tests.support.reloading import Reloading, reloading
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Peer,
    answer,
    answering,
    chunk,
    content,
    scripted_upstream,
)

CHAT = "/v1/chat/completions"
WHOLE = (OK_EVENTS, chunk(content("a") + STOP + DONE), LAST_CHUNK)
DEMO = "'demo://?tokens=2&interval=1ms&first=1ms'"
STREAMS = 500


class Held:
    """A model server that says one thing, goes on when it may, and keeps its connections."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.hung_up = 0

    async def script(self, peer: Peer) -> None:
        try:
            while True:
                await peer.request()
                await peer.send(OK_EVENTS, chunk(content("one")))
                await self.go_on.wait()
                await peer.send(chunk(content("two") + STOP + DONE), LAST_CHUNK)
        finally:
            self.hung_up += 1


def one(*replicas: str, more: str = "") -> str:
    """The route `m` on these replicas, which nobody probes."""
    listed = ", ".join(f"'{replica}'" for replica in replicas)
    return f"routes: {{m: {{replicas: [{listed}], health: none, retry: {{attempts: 1}}{more}}}}}\n"


def with_server(routes: str) -> str:
    return "server: {port: 0}\n" + routes


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


async def begun(stack: AsyncExitStack, port: int, *headers: str) -> RawClient:
    """A stream that has said one thing."""
    client = await stack.enter_async_context(raw_client(port))
    await client.send(post(CHAT, chat(), *headers))
    await client.reader.readuntil(content("one"))
    return client


async def is_whole(client: RawClient) -> bool:
    rest = await client.reader.readuntil(b"\r\n" + LAST_CHUNK)
    return content("two") + STOP + DONE in rest


def code(answer: RawAnswer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error"]["code"]


# ---- routes and replicas ----


async def test_the_next_request_finds_the_new_routes(tmp_path: Path) -> None:
    async with reloading(with_server(f"routes: {{m: {DEMO}}}\n"), tmp_path) as house, raw_client(house.port) as client:
        await client.send(post(CHAT, chat()))
        assert (await client.answer()).status == 200
        house.reload(with_server(f"routes: {{n: {DEMO}}}\n"))
        for model, status in (("m", 404), ("n", 200)):
            await client.send(post(CHAT, chat(model)))
            assert (await client.answer()).status == status
        page = await scrape(house.port)
        assert page.get("penstock_replica_up", route="n", replica="0") == 1
        assert page.get("penstock_replica_up", route="m", replica="0") is None
        assert page.total("penstock_requests_total", route="m", outcome="completed") == 1


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    async with reloading(with_server(f"routes: {{m: {DEMO}}}\n"), tmp_path) as house:
        before = house.served.gateway._relay.table
        house.reload("routes: {m: ftp://x}\n")
        assert house.served.gateway._relay.table is before
        assert (await scrape(house.port)).get("penstock_config_last_reload_success") == 0
        house.reload(with_server(f"routes: {{m: {DEMO}}}\n"))
        assert (await scrape(house.port)).get("penstock_config_last_reload_success") == 1


async def test_a_request_that_has_begun_finds_the_fallbacks_it_began_with(tmp_path: Path) -> None:
    asked, may_fail = asyncio.Event(), asyncio.Event()

    async def failing(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await may_fail.wait()
        await peer.send(answer(500, b"{}"))

    async with scripted_upstream(failing) as first, scripted_upstream(answering(*WHOLE)) as second:
        spare = f"spare: {{replicas: ['{second.url}'], health: none}}"
        routes = with_server(one(first.url, more=", fallbacks: [spare]").replace("}}\n", f"}}, {spare}}}\n"))
        async with reloading(routes, tmp_path) as house:
            asking = asyncio.create_task(ask(house.port, post(CHAT, chat())))
            await asked.wait()
            house.reload(with_server(f"routes: {{m: {DEMO}}}\n"))
            may_fail.set()
            got = await asking
    assert (got.status, got.headers["x-penstock-route"]) == (200, "spare")


async def test_a_replica_that_stays_keeps_its_counts_and_one_that_goes_finishes(tmp_path: Path) -> None:
    stays, goes = Held(), Held()
    async with (
        scripted_upstream(stays.script) as staying,
        scripted_upstream(goes.script) as going,
        AsyncExitStack() as stack,
        reloading(with_server(one(staying.url, going.url)), tmp_path) as house,
    ):
        clients = [await begun(stack, house.port) for _ in range(4)]  # dealt to the least busy: two and two
        house.reload(with_server(one(staying.url)))
        [replica] = house.served.gateway._relay.table.routes[0].replicas
        assert (replica.in_flight, going.connections) == (2, 2)
        clients.append(await begun(stack, house.port))
        assert (replica.in_flight, going.connections) == (3, 2)
        stays.go_on.set()
        goes.go_on.set()
        assert all([await is_whole(client) for client in clients])
        await until(lambda: replica.in_flight == 0)


async def test_kept_connections_to_a_replica_that_goes_are_closed(tmp_path: Path) -> None:
    held = Held()
    held.go_on.set()
    async with (
        scripted_upstream(held.script) as upstream,
        reloading(with_server(one(upstream.url)), tmp_path) as house,
    ):
        assert (await ask(house.port, post(CHAT, chat()))).whole
        house.reload(with_server(one(upstream.url, more=", keepalive: 9s")))
        assert (await ask(house.port, post(CHAT, chat()))).whole
        assert (upstream.connections, held.hung_up) == (1, 0)  # it stays, and so does the connection
        house.reload(with_server(f"routes: {{m: {DEMO}}}\n"))
        await until(lambda: held.hung_up == 1)


async def test_replicas_that_come_are_probed_and_those_that_go_are_not(tmp_path: Path) -> None:
    often = "{every: 20ms, timeout: 5s}"
    well = answering(answer(200, b"{}"))
    async with scripted_upstream(well) as first, scripted_upstream(well) as second:
        routes = "server: {{port: 0}}\nroutes: {{m: {{replicas: ['{}'], health: {}}}}}\n".format
        async with reloading(routes(first.url, often), tmp_path) as house:
            await until(lambda: len(first.requests) > 2)
            for _ in range(50):  # sooner than a probe's turn comes, again and again: it comes all the same
                house.reload(routes(first.url, often) + "tools: {}\n")
                await asyncio.sleep(0.002)
            seen = len(first.requests)
            await until(lambda: len(first.requests) > seen)
            house.reload(routes(second.url, often))
            await until(lambda: len(second.requests) > 2)
            seen = len(first.requests)
            await until(lambda: len(second.requests) > 6)
            assert len(first.requests) <= seen + 1  # one that was on its way
            house.reload(routes(second.url, "none"))
            seen = len(second.requests)
            await asyncio.sleep(0.1)
            assert len(second.requests) <= seen + 1


# ---- limits ----


async def test_a_limit_that_rises_lets_those_in_who_wait(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        AsyncExitStack() as stack,
        reloading(with_server(one(upstream.url, more=", limits: {streams: 1}")), tmp_path) as house,
    ):
        first = await begun(stack, house.port)
        waiting = [asyncio.create_task(begun(stack, house.port)) for _ in range(3)]
        limiter = house.served.gateway._relay.table.routes[0].limiter
        await until(lambda: limiter.waiting == 3)
        house.reload(with_server(one(upstream.url, more=", limits: {streams: 3}")))
        assert (limiter.in_flight, limiter.waiting) == (3, 1)
        done, _ = await asyncio.wait(waiting[:2], timeout=10)
        assert len(done) == 2
        house.reload(with_server(one(upstream.url, more=", limits: {streams: 1, queue: 1}")))  # nobody is put out
        assert (limiter.in_flight, limiter.waiting) == (3, 1)
        assert code(await ask(house.port, post(CHAT, chat()))) == (429, "queue_full")
        held.go_on.set()
        clients = [first, *[await each for each in waiting]]
        assert all([await is_whole(client) for client in clients])


# ---- keys and pages ----

KEYS = "auth: {{keys: [{{name: web, key: {}}}]}}\n"


async def test_a_key_counts_from_the_next_request_on_also_on_an_open_connection(tmp_path: Path) -> None:
    routes = with_server(f"routes: {{m: {DEMO}, n: {DEMO}}}\n")
    async with reloading(routes + KEYS.format("sk-old"), tmp_path) as house, raw_client(house.port) as client:
        asked = post(CHAT, chat(), "Authorization: Bearer sk-old")
        for _ in range(3):  # by now its head is known by heart
            await client.send(asked)
            assert (await client.answer()).status == 200
        house.reload(routes + KEYS.format("sk-old, models: [n]"))
        await client.send(asked)
        assert code(await client.answer()) == (403, "model_not_allowed")
        house.reload(routes + KEYS.format("sk-new"))
        await client.send(asked)
        assert code(await client.answer()) == (401, "invalid_api_key")
        await client.send(asked.replace(b"sk-old", b"sk-new"))
        assert (await client.answer()).status == 200
        house.reload(routes + KEYS.format("sk-new, limits: {requests_per_minute: 1}"))
        statuses = [(await ask(house.port, asked.replace(b"sk-old", b"sk-new"))).status for _ in range(2)]
        assert statuses == [200, 429]
        house.reload(routes)
        assert (await ask(house.port, post(CHAT, chat()))).status == 200


async def said(session: websockets.ClientConnection, house: Reloading) -> str:
    """What an open session's next request comes to: `[DONE]`, or an error's code."""
    await session.send(json.dumps(chat()))
    while True:
        text = str(await session.recv())
        if text == "[DONE]":
            return text
        if "error" in (data := json.loads(text)):
            return str(data["error"]["code"])


async def test_a_session_outlives_its_key_but_is_served_no_more(tmp_path: Path) -> None:
    routes = with_server(f"routes: {{m: {DEMO}}}\n")
    async with reloading(routes + KEYS.format("sk-old"), tmp_path) as house:
        headers = {"Authorization": "Bearer sk-old"}
        async with websockets.connect(house.served.ws_url + "/v1/ws", additional_headers=headers) as session:
            assert await said(session, house) == "[DONE]"
            house.reload(routes + KEYS.format("sk-old").replace("web", "renamed"))
            assert await said(session, house) == "[DONE]"
            house.reload(routes + KEYS.format("sk-new"))
            assert await said(session, house) == "invalid_api_key"
            house.reload(routes)
            assert await said(session, house) == "[DONE]"


async def test_a_session_without_a_key_is_served_no_more_once_keys_are_asked_for(tmp_path: Path) -> None:
    routes = with_server(f"routes: {{m: {DEMO}}}\n")
    async with (
        reloading(routes, tmp_path) as house,
        websockets.connect(house.served.ws_url + "/v1/ws") as session,
    ):
        assert await said(session, house) == "[DONE]"
        house.reload(routes + KEYS.format("sk-new"))
        assert await said(session, house) == "invalid_api_key"


async def test_the_pages_that_may_ask_change(tmp_path: Path) -> None:
    routes = with_server(f"routes: {{m: {DEMO}}}\n")
    page = "Origin: https://app.example"
    async with reloading(routes, tmp_path) as house, raw_client(house.port) as client:
        for origins, status in (("[]", 403), ("['https://app.example']", 200), ("[]", 403)):
            house.reload(routes + f"cors: {{origins: {origins}}}\n")
            await client.send(post(CHAT, chat(), page))
            got = await client.answer()
            assert got.status == status
            assert ("access-control-allow-origin" in got.headers) == (status == 200)
            preflight = get("/v1/models", page, "Access-Control-Request-Method: GET", method="OPTIONS")
            assert (await ask(house.port, preflight, "OPTIONS")).status == status


# ---- all of it under load ----


async def reloaded(gateway: RunningGateway, file: Path, text: str, number: int) -> None:
    """Write the file, and wait until every process has taken it up, or not: the `number`th time."""
    port = int(gateway.url.rpartition(":")[2])
    file.write_text(text)
    gateway.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while (await scrape(port)).get("penstock_config_reloads_total") != number:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_five_reloads_cut_none_of_five_hundred_streams(workers: str, tmp_path: Path) -> None:
    held, other, file = Held(), Held(), tmp_path / "routes.yaml"
    async with scripted_upstream(held.script) as first, scripted_upstream(other.script) as second:
        both = one(first.url, second.url)
        async with running_gateway(both, tmp_path, "--workers", workers) as gateway, AsyncExitStack() as stack:
            port = int(gateway.url.rpartition(":")[2])
            clients = await asyncio.gather(*(begun(stack, port, "Connection: close") for _ in range(STREAMS)))
            at_first, at_second = first.connections, second.connections
            assert at_first + at_second == STREAMS
            good = both.replace("routes: {", f"routes: {{n: {DEMO}, ")
            await reloaded(gateway, file, good, 1)
            assert (await ask(port, post(CHAT, chat("n")))).whole
            await reloaded(gateway, file, "routes: {m: ftp://canary}\n", 2)
            assert (await scrape(port)).get("penstock_config_last_reload_success") == 0
            await reloaded(gateway, file, one(first.url), 3)
            clients.append(await begun(stack, port, "Connection: close"))
            assert (first.connections, second.connections) == (at_first + 1, at_second)
            await reloaded(gateway, file, one(first.url, more=", limits: {streams: 1, queue: 0}"), 4)
            shed = [code(await ask(port, post(CHAT, chat()))) for _ in range(8)]
            assert shed == [(429, "queue_full")] * 8
            await reloaded(gateway, file, f"routes: {{n: {DEMO}}}\n", 5)
            assert code(await ask(port, post(CHAT, chat()))) == (404, "model_not_found")
            held.go_on.set()
            other.go_on.set()
            assert all(await asyncio.gather(*(is_whole(client) for client in clients)))
            page = await scrape(port)
            assert page.total("penstock_requests_total", route="m", outcome="completed") == STREAMS + 1
            log = gateway.log()
    assert "canary" not in log
    lines = [line for line in log.splitlines() if "configuration" in line]
    assert len(lines) == 5
    assert lines[0].endswith("configuration reloaded: routes added: n")
    assert "the last good one stays" in lines[1]
    assert lines[2].endswith("configuration reloaded: routes removed: n; routes changed: m (replicas: 1 removed)")
    assert lines[3].endswith("configuration reloaded: routes changed: m (limits)")
    assert lines[4].endswith("configuration reloaded: routes added: n; routes removed: m")
