"""The whole gateway in one loop: ports, starts and stops, drains."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest

from proxy.app import FIRST_REQUEST_WITHIN_S, Gateway
from proxy.config.loader import load
from proxy.ports import CannotListen
from proxy.telemetry.record import EndState, RequestRecord
from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, event, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def test_the_url_has_the_real_port(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        assert gateway.url.startswith("http://127.0.0.1:")
        assert (await ask(gateway.port, get("/healthz"), "GET")).status == 200


async def test_an_ipv6_url_has_brackets(tmp_path: Path) -> None:
    async with served(DEMO.replace("{port: 0}", "{port: 0, host: '::1'}"), tmp_path) as gateway:
        assert gateway.url.startswith("http://[::1]:")


@pytest.mark.parametrize("setting", ["server", "admin.listen"])
async def test_a_port_in_use_is_told_with_the_setting_that_asks_for_it(setting: str, tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    file = tmp_path / "routes.yaml"
    own = f"server: {{port: {port}}}" if setting == "server" else "server: {port: 0}"
    file.write_text(
        f"{own}\nadmin: {{listen: '127.0.0.1:{port if setting != 'server' else 0}'}}\nroutes: {{m: demo://}}\n"
    )
    gateway = Gateway(load(file, {}), lambda record: None)
    with pytest.raises(CannotListen) as failed:
        await gateway.start()
    assert failed.value.setting == setting
    assert failed.value.address == ("127.0.0.1", port)
    assert isinstance(failed.value.__cause__, OSError)
    await gateway.stop()  # what had begun to listen ends
    taken.close()
    await taken.wait_closed()


async def test_malformed_events_are_said_once_and_without_their_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = event(b"canary") * 5

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK_EVENTS, chunk(bad + content("x") + bad + STOP + DONE), LAST_CHUNK)

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        for _ in range(2):
            assert (await ask(gateway.port, post("/v1/chat/completions", chat()))).body == content("x") + STOP + DONE
    assert [message for message in caplog.messages if "dropped" in message] == [
        'route "m": an event that is not a JSON object was dropped'
    ]
    assert "canary" not in caplog.text


class Held:
    """An upstream that says one thing and goes on when it may."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK_EVENTS, chunk(content("one")))
            await self.go_on.wait()
            await peer.send(chunk(STOP + DONE), LAST_CHUNK)


async def test_a_drain_accepts_nothing_new_and_lets_what_runs_finish(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as busy,
        raw_client(gateway.port) as idle,
    ):
        await busy.send(post("/v1/chat/completions", chat()))
        await busy.reader.readuntil(b"one")
        await idle.send(get("/v1/models"))
        await idle.answer("GET")
        draining = asyncio.create_task(gateway.gateway.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", gateway.port)
        await idle.send(post("/v1/chat/completions", chat()))
        refused = await idle.answer()
        assert await idle.rest() == b""
        assert not draining.done()
        held.go_on.set()
        async with asyncio.timeout(2):
            assert (await busy.reader.readuntil(LAST_CHUNK)).endswith(chunk(STOP + DONE) + LAST_CHUNK)
        await draining
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (503, "draining")
    assert refused.headers["connection"] == "close"
    assert int(refused.headers["retry-after"]) >= 1
    ends = [record.end_state for record in gateway.records if record.path == "/v1/chat/completions"]
    assert ends == [EndState.SHED, EndState.COMPLETED]


async def test_a_request_that_had_begun_when_the_drain_did_is_served(tmp_path: Path) -> None:
    """Its client cannot know better: half a head, half a body, or nothing of it had come."""
    whole = post("/v1/chat/completions", chat())
    head = whole.index(b"\r\n\r\n") + 4
    for cut in (0, 10, head, len(whole) - 5):
        async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(whole[:cut])
            draining = asyncio.create_task(gateway.gateway.drain())
            await asyncio.sleep(0.05)
            assert not draining.done()
            await client.send(whole[cut:])
            assert (await client.answer()).status == 200
            await draining


async def test_who_says_nothing_keeps_no_drain_waiting_for_long(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port):
        async with asyncio.timeout(FIRST_REQUEST_WITHIN_S + 5):
            await gateway.gateway.drain()


async def test_the_drains_deadline_ends_streams_with_an_error(tmp_path: Path) -> None:
    held = Held()
    async with (
        scripted_upstream(held.script) as upstream,
        served(one_route(upstream.url, server="port: 0\ndrain: 50ms"), tmp_path) as gateway,
        raw_client(gateway.port) as streaming,
        raw_client(gateway.port) as whole,
    ):
        await streaming.send(post("/v1/chat/completions", chat()))
        await whole.send(post("/v1/embeddings", {"model": "m"}))
        await streaming.reader.readuntil(b"\r\n\r\n")
        await gateway.gateway.drain()
        async with asyncio.timeout(2):
            tail = await streaming.reader.readuntil(b"\r\n0\r\n\r\n")
    assert b'"code":"draining"' in tail
    assert b"DONE" not in tail
    assert {record.end_state for record in gateway.records} == {EndState.DRAINED}


async def test_a_stop_ends_everything_at_once_and_records_it(tmp_path: Path) -> None:
    held = Held()
    loop = asyncio.get_running_loop()
    async with scripted_upstream(held.script) as upstream:
        async with served(one_route(upstream.url), tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat()))
            await client.reader.readuntil(b"one")
            began = loop.time()
            await gateway.gateway.stop()
            assert loop.time() - began < 1
            assert not (await client.rest()).endswith(LAST_CHUNK)
    assert [record.end_state for record in gateway.records] == [EndState.CLIENT_CLOSED]


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    records: list[RequestRecord] = []
    async with served(DEMO, tmp_path) as gateway:
        for _ in range(5):
            assert (await ask(gateway.port, post("/v1/chat/completions", chat()))).whole
        records = gateway.records
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert len(records) == 5
