"""Stages on a real model server: their chunks are, at temperature 0, exactly what the server itself streams."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from tests.support.gateway import running_gateway
from tests.support.model_server import PATIENT
from tests.support.stages import framed, lines, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.gateway import RunningGateway
    from tests.support.model_server import ModelServer

# One event loop, as the tests share one gateway.
pytestmark = [pytest.mark.real_server, pytest.mark.asyncio(loop_scope="module")]

ASKED = stage(system_prompt="Be brief.", user_prompt='naïve 🌊 "quoted"', max_tokens=[16, 32], temperature=0)
AN_ANSWER_S_OWN = {"id", "created"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    served = f"model: {json.dumps(model_server.model)}, replicas: ['{model_server.url}'], {PATIENT}"
    routes = f"routes: {{m: {{{served}}}}}\n"
    async with running_gateway(routes, tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def directly(server: ModelServer, *, stream: bool) -> bytes:
    """What the server says to the same chat completion."""
    messages = [
        {"role": "system", "content": ASKED["system_prompt"]},
        {"role": "user", "content": ASKED["user_prompt"]},
    ]
    body = {"model": server.model, "messages": messages, "max_tokens": 16, "temperature": 0, "stream": stream}
    async with httpx.AsyncClient(timeout=120) as client:
        return (await client.post(f"{server.url}/v1/chat/completions", json=body)).content


def lasting(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk without what differs from one answer to the next."""
    return {name: value for name, value in chunk.items() if name not in AN_ANSWER_S_OWN}


def chunks_of(said: list[str]) -> list[dict[str, Any]]:
    """The chunks in a stage's lines, which must end well."""
    *chunks, last = said
    assert last == "done {}"
    assert {line.split(" ", 1)[0] for line in chunks} == {"chat_completion_chunk"}
    return [lasting(json.loads(line.split(" ", 1)[1])["chunk"]) for line in chunks]


def spoken(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def test_a_stage_streams_what_the_server_streams(gateway: RunningGateway, model_server: ModelServer) -> None:
    async with httpx.AsyncClient(timeout=120) as client:
        answered = await client.post(f"{gateway.url}/stream/v1/chat", json=ASKED)
    assert answered.status_code == 200
    got = chunks_of(lines(answered.content))
    data = [line[6:] for line in (await directly(model_server, stream=True)).splitlines() if line.startswith(b"data: ")]
    expected = [lasting(json.loads(each)) for each in data if each != b"[DONE]"]
    assert got == expected
    assert spoken(got)


async def test_a_websocket_gets_the_same(gateway: RunningGateway, model_server: ModelServer) -> None:
    async with httpx.AsyncClient(timeout=120) as client:
        streamed = chunks_of(lines((await client.post(f"{gateway.url}/stream/v1/chat", json=ASKED)).content))
    async with connect(f"{gateway.ws_url}/stream/v1/chat", max_size=None) as socket:
        await socket.send(json.dumps(ASKED))
        frames: list[str] = []
        while not frames or '"done"' not in frames[-1][:20]:
            frames.append(str(await socket.recv()))
    assert chunks_of(framed(frames)) == streamed


async def test_a_completion_is_the_servers_answer(gateway: RunningGateway, model_server: ModelServer) -> None:
    async with httpx.AsyncClient(timeout=120) as client:
        answered = (await client.post(f"{gateway.url}/completion/v1/chat", json=ASKED)).json()
    assert list(answered) == ["stage_id", "chat_completion"]
    assert lasting(answered["chat_completion"]) == lasting(json.loads(await directly(model_server, stream=False)))
