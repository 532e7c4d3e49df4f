"""nginx and haproxy in front of the gateway, configured as docs/behind-a-proxy.md says: tokens come one by one, sockets
upgrade, who leaves is noticed, nothing is smuggled past."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import websockets
import yaml

from tests.downstream.test_connection import HARMLESS, SMUGGLED, WHOLE
from tests.support.nginx_and_haproxy import OtherProxy, documented, running_haproxy, running_nginx, served_by
from tests.support.raw_client import RawClient, ask, chat, get, post, raw_client
from tests.support.served import Served, served
from tests.support.upstream import STOP, ScriptedUpstream, answering, content, scripted_upstream
from tests.support.word_by_word import Model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nginx_and_haproxy import Running
    from tests.support.upstream import Script

CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0
HOST = "llm.example.com"
SEEN = "x-seen-by"
"""What the proxy adds to each request that it has seen as one."""
ADDED = {
    "nginx": ("proxy_pass http://penstock;", f"proxy_pass http://penstock; proxy_set_header {SEEN} nginx;"),
    "haproxy": ("default_backend", f"http-request set-header {SEEN} haproxy\n    default_backend"),
}
RUNNING: dict[str, Running] = {"nginx": running_nginx, "haproxy": running_haproxy}

both = pytest.mark.parametrize("kind", RUNNING)


@dataclass(frozen=True, slots=True)
class World:
    """Clients ask the proxy, that asks the gateway, and that the model server."""

    upstream: ScriptedUpstream
    gateway: Served
    proxy: OtherProxy


def gateway_settings(url: str) -> str:
    """The document's settings, on free ports, without the key, and with a route."""
    settings = yaml.safe_load(documented("yaml"))
    settings["server"]["port"] = 0
    settings["admin"]["listen"] = "127.0.0.1:0"
    del settings["auth"]
    settings["routes"] = {"m": {"replicas": [url], "health": "none"}}
    return json.dumps(settings)


@asynccontextmanager
async def world(kind: str, script: Script, folder: Path, sections: str | None = None) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted_upstream(script))
        gateway = await stack.enter_async_context(served(gateway_settings(upstream.url), folder))
        if sections is None:
            sections = documented(kind).replace(*ADDED[kind])
        proxy = await stack.enter_async_context(RUNNING[kind](served_by(sections, gateway.url), folder))
        yield World(upstream, gateway, proxy)


async def hears(client: RawClient, told: bytes, so_far: bytes = b"") -> bytes:
    """Reads until this has been told."""
    async with asyncio.timeout(PATIENCE_S):
        while told not in so_far:
            piece = await client.reader.read(65536)
            assert piece, so_far
            so_far += piece
    return so_far


async def word_by_word(client: RawClient, model: Model) -> bytes:
    """Each word is said only once the client has heard the one before: whatever is held back is never heard."""
    heard = b""
    for word in ("one", "two", "three", "four"):
        model.say(word)
        heard = await hears(client, content(word), heard)
    model.stop()
    return await hears(client, STOP, heard)


@both
async def test_events_come_one_by_one(kind: str, tmp_path: Path) -> None:
    model = Model()
    async with world(kind, model.script, tmp_path) as there, raw_client(there.proxy.port) as client:
        await client.send(post(CHAT, chat(), f"Host: {HOST}").replace(b"Host: 127.0.0.1\r\n", b""))
        heard = await word_by_word(client, model)
        assert heard.startswith(b"HTTP/1.1 200 OK\r\n")
        await hears(client, b"0\r\n\r\n", heard)
        assert (await there.gateway.record()).transport == "sse"


async def test_they_do_from_an_nginx_that_was_told_nothing(tmp_path: Path) -> None:
    model = Model()
    sections = "server { listen 80; location / { proxy_pass http://penstock; } }\n"
    sections += "upstream penstock { server 127.0.0.1:8080; }"
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(scripted_upstream(model.script))
        routes = gateway_settings(upstream.url).replace(HOST, "penstock")  # the name that it asks for
        gateway = await stack.enter_async_context(served(routes, tmp_path))
        proxy = await stack.enter_async_context(running_nginx(served_by(sections, gateway.url), tmp_path))
        client = await stack.enter_async_context(raw_client(proxy.port))
        await client.send(post(CHAT, chat()))
        await word_by_word(client, model)


async def frame_with(socket: websockets.ClientConnection, told: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while told not in str(await socket.recv()):
            pass


@both
async def test_websockets_upgrade_and_their_frames_come_one_by_one(kind: str, tmp_path: Path) -> None:
    for protocols in (None, [websockets.Subprotocol("llm-mux.v1")]):
        model = Model()
        async with world(kind, model.script, tmp_path) as there:
            address = f"ws://127.0.0.1:{there.proxy.port}/v1/ws"
            origin = websockets.Origin(f"http://127.0.0.1:{there.proxy.port}")  # our own page, as a browser sees it
            async with websockets.connect(address, subprotocols=protocols, origin=origin) as socket:
                start = {"type": "start", "rid": "r1", "path": CHAT, "body": chat()} if protocols else chat()
                await socket.send(json.dumps(start))
                for word in ("one", "two", "three"):
                    model.say(word)
                    await frame_with(socket, f'"{word}"')
                model.stop()
                await frame_with(socket, '"type":"done"' if protocols else "[DONE]")


@both
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_that_leaves_closes_the_model_servers_connection(kind: str, reset: bool, tmp_path: Path) -> None:
    model = Model()
    async with world(kind, model.script, tmp_path) as there, raw_client(there.proxy.port) as client:
        await client.send(post(CHAT, chat()))
        model.say("one")
        await hears(client, content("one"))
        client.leave(reset=reset)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        assert (await there.gateway.record()).end_state == "client_closed"


@both
async def test_a_websocket_client_that_leaves_does_too(kind: str, tmp_path: Path) -> None:
    model = Model()
    async with world(kind, model.script, tmp_path) as there:
        async with websockets.connect(f"ws://127.0.0.1:{there.proxy.port}/v1/ws") as socket:
            await socket.send(json.dumps(chat()))
            model.say("one")
            await socket.recv()
            socket.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()


JSON_ANSWER = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@both
async def test_nothing_is_smuggled_past(kind: str, tmp_path: Path) -> None:
    async with world(kind, JSON_ANSWER, tmp_path) as there:
        for case, request in {**SMUGGLED, **HARMLESS}.items():
            there.upstream.requests.clear()
            async with raw_client(there.proxy.port) as client:
                await client.send(request)
                first = await client.answer()
                await client.send(get("/v1/models", "Connection: close"))
                answered = (first.status == 200) + (await client.rest()).count(b"HTTP/1.1 200")
            for reached in there.upstream.requests:  # the proxy knew of each, and it is whole
                assert reached.headers(SEEN) == [kind], case
                assert reached.body.decode() == WHOLE, case
            assert len(there.upstream.requests) <= answered, case
        assert (await ask(there.proxy.port, post(CHAT, chat(stream=False)))).status == 200


@both
async def test_large_bodies_pass_and_the_client_is_known(kind: str, tmp_path: Path) -> None:
    async with world(kind, JSON_ANSWER, tmp_path) as there:
        body = chat(stream=False, padding="x" * (8 << 20))
        assert (await ask(there.proxy.port, post(CHAT, body, "X-Forwarded-For: 6.6.6.6"))).status == 200
        [received] = there.upstream.requests
    assert len(received.body) > 8 << 20
    assert received.header("x-forwarded-for") == "127.0.0.1, 127.0.0.1"  # the client, and the proxy
    assert received.header("x-forwarded-host") == "127.0.0.1"
    assert received.header("x-forwarded-proto") == "http"


@both
async def test_operations_are_not_reached_through_it(kind: str, tmp_path: Path) -> None:
    async with world(kind, JSON_ANSWER, tmp_path) as there:
        for path in ("/metrics", "/readyz", "/healthz"):
            assert (await ask(there.proxy.port, get(path), "GET")).status == 404
        assert (await ask(there.proxy.port, get("/v1/models"), "GET")).status == 200
