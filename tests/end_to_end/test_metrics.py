"""Real requests, and what `/metrics` says of them: each one once, under its own labels, and nothing that is secret."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import websockets

from proxy.worker_metrics import ROUND_S
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.prometheus import Page, read, scrape
from tests.support.raw_client import RawClient, ask, chat, get, post, raw_client
from tests.support.served import Served, one_route, served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    STOP,
    Peer,
    Script,
    answer,
    answering,
    chunk,
    content,
    event,
    scripted_upstream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT = "/v1/chat/completions"
WHOLE = (OK_EVENTS, chunk(content("a")), chunk(content("b") + STOP + DONE), LAST_CHUNK)
IDLE = "timeouts: {idle: 50ms}"
ERROR = event(b'{"error":{"message":"x"}}')
USAGE = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def saying(*pieces: bytes, end: str) -> Script:
    """A script that says these pieces and then stalls, resets, or ends."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        if end == "stall":
            await peer.closed()
        elif end == "reset":
            peer.reset()

    return script


async def after(gateway: Served, requests: int = 1) -> Page:
    """The page once so many requests have ended."""
    await gateway.record(requests - 1)
    return await scrape(gateway.port)


def ended(page: Page) -> list[tuple[str, ...]]:
    """The labels of all requests that were counted, each as often as it was."""
    found = []
    for (name, labels), value in page.samples.items():
        if name == "penstock_requests_total":
            said = dict(labels)
            found += [(said["route"], said["endpoint"], said["transport"], said["outcome"])] * int(value)
    return sorted(found)


def tried(page: Page) -> list[str]:
    return sorted(
        dict(labels)["outcome"]
        for (name, labels), value in page.samples.items()
        for _ in range(int(value))
        if name == "penstock_upstream_attempts_total"
    )


# ---- every end, once ----


@pytest.mark.parametrize(
    ("script", "settings", "end", "attempt"),
    [
        (answering(*WHOLE), [], ("sse", "completed"), "ok"),
        (answering(answer(200, USAGE)), [], ("http", "completed"), "ok"),
        (answering(answer(404, b"{}")), [], ("http", "upstream_rejected"), "status"),
        (answering(answer(500, b"{}")), [], ("http", "upstream_error"), "status"),
        (answering(OK_EVENTS, chunk(ERROR), LAST_CHUNK), [], ("http", "upstream_error"), "error_event"),
        (saying(b"garbage\r\n", end="end"), [], ("http", "upstream_error"), "invalid"),
        (saying(end="end"), [], ("http", "upstream_error"), "reset"),
        (saying(OK_EVENTS, chunk(content("a")), end="reset"), [], ("sse", "upstream_truncated"), "truncated"),
        (saying(OK_EVENTS, chunk(content("a")), end="stall"), [IDLE], ("sse", "upstream_idle"), "timeout"),
        (saying(end="stall"), ["timeouts: {first_token: 50ms}"], ("http", "first_token_timeout"), "timeout"),
    ],
)  # fmt: skip
async def test_an_answer_counts_once_by_its_end_and_its_attempt(
    script: Script, settings: list[str], end: tuple[str, str], attempt: str, tmp_path: Path
) -> None:
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url, *settings), tmp_path) as gateway:
        await ask(gateway.port, post(CHAT, chat()))
        page = await after(gateway)
    assert ended(page) == [("m", CHAT, *end)]
    assert tried(page) == [attempt]
    assert page.total("penstock_request_duration_seconds_count") == 1
    assert page.get("penstock_streams_in_flight", route="m") == 0
    assert page.get("penstock_streams_truncated_total", route="m") == (end[1] == "upstream_truncated")
    assert page.total("penstock_client_disconnects_total") == 0


async def test_who_is_turned_away_counts_once(tmp_path: Path) -> None:
    refusing = "{replicas: ['http://127.0.0.1:9'], retry: {attempts: 1}}"
    routes = f"server: {{port: 0}}\nroutes: {{m: {refusing}, empty: {{replicas: []}}}}\n"
    async with served(routes, tmp_path) as gateway:
        for path, body in ((CHAT, chat("nobody")), (CHAT, b"no JSON"), ("/v1/made/up", chat("empty")), (CHAT, chat())):
            await ask(gateway.port, post(path, body))
        await ask(gateway.port, get("/nothing/here"), "GET")
        await ask(gateway.port, get("/v1/models"), "GET")
        page = await after(gateway, 6)
    assert ended(page) == sorted([
        ("unknown", CHAT, "http", "rejected"),
        ("unknown", CHAT, "http", "rejected"),
        ("empty", "other", "http", "shed"),
        ("m", CHAT, "http", "upstream_error"),
        ("unknown", "other", "http", "rejected"),
        ("unknown", "/v1/models", "http", "completed"),
    ])  # fmt: skip
    assert tried(page) == ["refused"]


async def test_a_sessions_requests_count_and_the_session_itself_only_while_it_is_open(tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(*WHOLE)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
            for _ in range(2):
                await socket.send(json.dumps(chat()))
                while await socket.recv() != "[DONE]":
                    pass
            page = await after(gateway, 2)
            assert page.get("penstock_websocket_sessions", dialect="bare") == 1
        page = await after(gateway, 3)  # with the session's own record
    assert page.get("penstock_websocket_sessions", dialect="bare") == 0
    assert ended(page) == [("m", "/v1/ws", "ws", "completed")] * 2


async def test_what_runs_is_in_flight(tmp_path: Path) -> None:
    async with (
        scripted_upstream(saying(OK_EVENTS, chunk(content("a")), end="stall")) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        AsyncExitStack() as stack,
    ):
        for count in (1, 2):
            client = await stack.enter_async_context(raw_client(gateway.port))
            await client.send(post(CHAT, chat()))
            await client.reader.readuntil(content("a"))
            page = await scrape(gateway.port)
            assert page.get("penstock_streams_in_flight", route="m") == count
        assert ended(page) == []


# ---- times, tokens, events ----


async def test_times_and_tokens_of_a_stream(tmp_path: Path) -> None:
    demo = "server: {port: 0}\nroutes: {m: 'demo://?tokens=20&interval=5ms&first=60ms'}\n"
    async with served(demo, tmp_path) as gateway:
        await ask(gateway.port, post(CHAT, chat(stream_options={"include_usage": True})))
        page = await after(gateway)
    assert page.get("penstock_time_to_first_token_seconds_count", route="m") == 1
    assert 0.05 <= (page.get("penstock_time_to_first_token_seconds_sum", route="m") or 0) < 5
    gaps = page.get("penstock_inter_token_seconds_count", route="m") or 0
    assert gaps == gateway.records[0].events - 1
    assert 0.08 <= (page.get("penstock_inter_token_seconds_sum", route="m") or 0) < 5
    assert page.get("penstock_tokens_total", route="m", kind="output", estimated="false") == 20
    assert page.get("penstock_queue_wait_seconds_count", route="m") == 1


async def test_each_malformed_event_counts(tmp_path: Path) -> None:
    said = chunk(content("a") + event(b"no JSON") + event(b"[half") + STOP + DONE)
    async with (
        scripted_upstream(answering(OK_EVENTS, said, LAST_CHUNK)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
    ):
        await ask(gateway.port, post(CHAT, chat()))
        page = await after(gateway)
    assert page.get("penstock_malformed_events_total", route="m") == 2


async def test_an_upstream_that_holds_events_back_is_told(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK_EVENTS)
            for _ in range(4):
                await asyncio.sleep(0.1)
                await peer.send(chunk(b"".join(content(str(at)) for at in range(20))))
            await peer.send(chunk(STOP + DONE) + LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        await ask(gateway.port, post(CHAT, chat()))
        page = await after(gateway)
    assert page.get("penstock_bursting_upstream", route="m") == 1


async def test_an_upstream_that_tells_event_by_event_is_no_bursting_one(tmp_path: Path) -> None:
    demo = "server: {port: 0}\nroutes: {m: 'demo://?tokens=30&interval=5ms&first=60ms'}\n"
    async with served(demo, tmp_path) as gateway:
        await ask(gateway.port, post(CHAT, chat()))
        page = await after(gateway)
    assert page.get("penstock_bursting_upstream", route="m") == 0


async def test_a_blocked_loop_is_told(tmp_path: Path) -> None:
    async with served("server: {port: 0}\nroutes: {m: demo://}\n", tmp_path) as gateway:
        page = await scrape(gateway.port)
    assert 0 <= (page.get("penstock_event_loop_lag_seconds") or 0) < 10


# ---- clients that leave ----


@pytest.mark.parametrize(
    ("pieces", "stream", "phase"),
    [
        ((), True, "headers"),
        ((), False, "headers"),
        ((OK_EVENTS,), True, "first_event"),
        ((OK_EVENTS, chunk(content("a"))), True, "stream"),
        ((answer(200, b"{}")[:-1],), False, "response"),
    ],
)
async def test_a_client_that_leaves_counts_by_how_far_it_came(
    pieces: tuple[bytes, ...], stream: bool, phase: str, tmp_path: Path
) -> None:
    said = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        said.set()
        await peer.closed()

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat(stream=stream)))
            await said.wait()
            await asyncio.sleep(0.05)  # what was said reaches the gateway
        page = await after(gateway)
    assert page.get("penstock_client_disconnects_total", route="m", phase=phase) == 1
    assert page.total("penstock_client_disconnects_total") == 1
    assert [end for *_, end in ended(page)] == ["client_closed"]


async def test_a_client_that_leaves_within_its_body_counts_for_no_route(tmp_path: Path) -> None:
    async with served("server: {port: 0}\nroutes: {m: demo://}\n", tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post(CHAT, chat())[:-5])
            await asyncio.sleep(0.05)
        page = await after(gateway)
    assert page.get("penstock_client_disconnects_total", route="unknown", phase="body") == 1


async def test_a_client_that_leaves_while_its_replica_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = asyncio.Event()

    async def for_ever(*args: object) -> None:
        connecting.set()
        await asyncio.Event().wait()

    async with served(one_route("http://127.0.0.1:9"), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            with monkeypatch.context() as patched:
                patched.setattr(asyncio.get_running_loop(), "sock_connect", for_ever)
                await client.send(post(CHAT, chat()))
                await connecting.wait()
        page = await after(gateway)
    assert page.get("penstock_client_disconnects_total", route="m", phase="connect") == 1
    assert tried(page) == []


async def test_a_cancel_on_a_socket_counts_as_leaving(tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(content("a")), end="stall")
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with websockets.connect(gateway.ws_url + "/v1/ws") as socket:
            await socket.send(json.dumps(chat()))
            await socket.recv()
            await socket.send('{"type":"cancel"}')
            page = await after(gateway)
    assert page.get("penstock_client_disconnects_total", route="m", phase="stream") == 1


# ---- what must not be there ----


async def test_no_secret_and_nothing_a_client_made_up_is_told(tmp_path: Path) -> None:
    async with scripted_upstream(answering(*WHOLE)) as upstream:
        port = upstream.url.rpartition(":")[2]
        routes = (
            "server: {port: 0}\n"
            "admin: {key: canary-admin}\n"
            "auth: {keys: [{name: web, key: canary-client}]}\n"
            "routes:\n"
            f"  m: {{model: canary-upstream-name, replicas: [{{url: '{upstream.url}', api_key: canary-replica, "
            "headers: {X-Team: canary-header}}]}\n"
        )
        async with served(routes, tmp_path) as gateway:
            key = "Authorization: Bearer canary-client"
            said = [{"role": "user", "content": "canary-prompt"}]
            await ask(gateway.port, post(CHAT, chat(messages=said, user="canary-user"), key, "X-Request-Id: canary-id"))
            await ask(gateway.port, post("/v1/canary-path?canary-query", chat(), key))
            await ask(gateway.port, post(CHAT, chat("canary-model"), key))
            await ask(gateway.port, post(CHAT, chat(), "Authorization: Bearer canary-guess"))
            page = await after(gateway, 4)
    assert page.total("penstock_requests_total") == 4
    assert "canary" not in page.text
    assert "127.0.0.1" not in page.text
    assert port not in page.text


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "grün/模型", "a{b},c=1"])
async def test_a_route_may_be_called_anything(name: str, tmp_path: Path) -> None:
    routes = f"server: {{port: 0}}\nroutes: {{{json.dumps(name)}: 'demo://?tokens=2&interval=1ms&first=1ms'}}\n"
    async with served(routes, tmp_path) as gateway:
        await ask(gateway.port, post(CHAT, chat(name)))
        page = await after(gateway)
    assert ended(page) == [(name, CHAT, "sse", "completed")]


# ---- several processes ----

DEMO = "routes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"


def port_of(gateway: RunningGateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def workers(gateway: RunningGateway) -> list[int]:
    pid = gateway.process.pid
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def scraped_until(gateway: RunningGateway, true: Callable[[Page], bool]) -> Page:
    """The first page that is as it should be; what was counted may not fall on the way to it.

    A connection that a worker takes into its grave is no page.
    """
    counted = 0.0
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.02)
            try:
                answer = await ask(port_of(gateway), get("/metrics"), "GET")
            except ConnectionError:
                continue
            if not answer.whole:
                continue
            page = read(answer.body.decode())
            assert page.total("penstock_requests_total") >= counted
            counted = page.total("penstock_requests_total")
            if true(page):
                return page


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")


async def test_any_worker_tells_what_all_have_counted(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "2") as gateway:
        for _ in range(16):
            assert (await ask(port_of(gateway), post(CHAT, chat()))).whole
        await scraped_until(gateway, lambda page: page.total("penstock_requests_total") == 16)
        pages = await asyncio.gather(*(scrape(port_of(gateway)) for _ in range(8)))
    for page in pages:
        assert ended(page) == [("m", CHAT, "sse", "completed")] * 16
        assert page.total("penstock_request_duration_seconds_bucket", route="m", outcome="completed", le="+Inf") == 16
        assert page.get("penstock_workers_reporting") == 2
        assert page.get("penstock_replica_up", route="m", replica="0") == 1
        assert len([labels for name, labels in page.samples if name == "penstock_build_info"]) == 1


@needs_proc
async def test_what_a_killed_worker_has_counted_stays(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "2") as gateway:
        for _ in range(16):
            assert (await ask(port_of(gateway), post(CHAT, chat()))).whole
        await scraped_until(gateway, lambda page: page.total("penstock_requests_total") == 16)
        for killed in workers(gateway):
            os.kill(killed, signal.SIGKILL)
            await scraped_until(
                gateway,
                lambda page, killed=killed: (  # type: ignore[misc]
                    page.get("penstock_workers_reporting") == 2 and killed not in workers(gateway)
                ),
            )
        page = await scrape(port_of(gateway))
        assert page.total("penstock_requests_total") == 16
        assert (await ask(port_of(gateway), post(CHAT, chat()))).whole
        await scraped_until(gateway, lambda page: page.total("penstock_requests_total") == 17)


@needs_proc
async def test_a_worker_that_hangs_is_left_out_and_what_it_counted_stays(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--workers", "2") as gateway, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw_client(port_of(gateway))) for _ in range(16)]
        for client in clients:
            await client.send(post(CHAT, chat()))
            assert (await client.answer()).whole
        await scraped_until(gateway, lambda page: page.total("penstock_requests_total") == 16)
        hung, _ = workers(gateway)
        os.kill(hung, signal.SIGSTOP)
        try:
            told = [asyncio.create_task(told_over(client)) for client in clients]
            done, waiting = await asyncio.wait(told, timeout=1.5 * ROUND_S)
        finally:
            os.kill(hung, signal.SIGCONT)
        assert done
        for page in [task.result() for task in done]:
            assert page.get("penstock_workers_reporting") == 1
            assert page.total("penstock_requests_total") == 16
        for page in await asyncio.gather(*waiting):
            assert page.total("penstock_requests_total") == 16
        await scraped_until(gateway, lambda page: page.get("penstock_workers_reporting") == 2)


async def told_over(client: RawClient) -> Page:
    await client.send(get("/metrics"))
    answer = await client.answer("GET")
    assert answer.status == 200, answer
    return read(answer.body.decode())
