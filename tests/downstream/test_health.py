"""Health: for load balancers, without a key, on a port of its own where the file says so."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from proxy.downstream.server import ClientRunner
from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.served import Served

KEYS = "auth: {keys: [{name: web, key: sk-web}]}\n"
DEMO = "server: {port: 0}\nroutes: {m: demo://}\n"


def admin_port(gateway: Served) -> int:
    runners: list[ClientRunner] = gateway.gateway._runners
    port: int = runners[1].addresses[0][1]
    return port


async def test_health_asks_for_no_key(tmp_path: Path) -> None:
    async with served(DEMO + KEYS, tmp_path) as gateway:
        lives = await ask(gateway.port, get("/healthz"), "GET")
        ready = await ask(gateway.port, get("/readyz"), "GET")
    assert (lives.status, json.loads(lives.body)) == (200, {"status": "ok"})
    assert (ready.status, json.loads(ready.body)) == (200, {"status": "ready"})
    assert gateway.records == []


async def test_admin_listen_moves_health_off_the_main_port(tmp_path: Path) -> None:
    async with served(DEMO + "admin: {listen: '127.0.0.1:0'}\n", tmp_path) as gateway:
        for path in ("/healthz", "/readyz"):
            assert (await ask(gateway.port, get(path), "GET")).status == 404
            answered = await ask(admin_port(gateway), get(path), "GET")
            assert (answered.status, answered.headers["server"]) == (200, "penstock")
        assert (await ask(admin_port(gateway), get("/v1/models"), "GET")).status == 404


async def test_readyz_says_503_while_the_gateway_drains_and_healthz_200(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("one")))
        await go_on.wait()
        await peer.send(chunk(STOP + DONE), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url) + "admin: {listen: '127.0.0.1:0'}\n", tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        await client.reader.readuntil(b"one")
        draining = asyncio.create_task(gateway.gateway.drain())
        await asyncio.sleep(0)
        ready = await ask(admin_port(gateway), get("/readyz"), "GET")
        lives = await ask(admin_port(gateway), get("/healthz"), "GET")
        assert not draining.done()
        go_on.set()
        await draining
    assert (ready.status, json.loads(ready.body)) == (503, {"status": "draining"})
    assert lives.status == 200
