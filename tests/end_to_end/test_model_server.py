"""A real model server behind the real gateway: clients get, at temperature 0, exactly what the server itself gives."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

from tests.support.cable import laid_cable
from tests.support.gateway import running_gateway
from tests.support.model_server import PATIENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from pydantic import BaseModel

    from tests.support.gateway import RunningGateway
    from tests.support.model_server import ModelServer

    Ask = Callable[[AsyncOpenAI, str, str], Awaitable[Any]]

# One event loop, as the tests share one gateway.
pytestmark = [pytest.mark.real_server, pytest.mark.asyncio(loop_scope="module")]

ENDS_BY_ITSELF = "水"  # the tiny model's answer to this one reaches its end token; the others run into the limit
PROMPTS = ("hi", "Tell me about water", 'naïve 🌊 \u2028 "quoted" \\ back', ENDS_BY_ITSELF)
NAMES = ("tiny", "gpt-tiny")  # a route and its alias
LIMIT_TOKENS = 32
LONG_TOKENS = 800  # some seconds of work for the server
NEVER_ENDS: dict[str, Any] = {"max_tokens": LONG_TOKENS, "logit_bias": {"1": -100.0}}  # 1 is the end token
AN_ANSWER_S_OWN = {"id", "item_id", "created", "created_at"}  # differ from one answer to the next, whoever gives it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """Knows the model by `NAMES`; the server has a third name for it, is pinned to that, and refuses any other."""
    routes = f"""
discover: false
routes:
  tiny:
    model: {json.dumps(model_server.model)}
    aliases: [gpt-tiny]
    replicas: ["{model_server.url}"]
    {PATIENT}
"""
    async with running_gateway(routes, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def client(root: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{root}/v1", api_key="unused", max_retries=0, timeout=60)


def chat(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    """The members of a chat completions request."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": LIMIT_TOKENS, **more}


def completion(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": LIMIT_TOKENS}


def response(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "input": prompt, "temperature": 0, "max_output_tokens": LIMIT_TOKENS}


async def streamed_chat(sdk: AsyncOpenAI, model: str, prompt: str) -> Any:
    return [facts(chunk) async for chunk in await sdk.chat.completions.create(**chat(model, prompt), stream=True)]


async def streamed_completion(sdk: AsyncOpenAI, model: str, prompt: str) -> Any:
    return [facts(chunk) async for chunk in await sdk.completions.create(**completion(model, prompt), stream=True)]


async def streamed_response(sdk: AsyncOpenAI, model: str, prompt: str) -> Any:
    return [facts(event) async for event in await sdk.responses.create(**response(model, prompt), stream=True)]


async def whole_chat(sdk: AsyncOpenAI, model: str, prompt: str) -> Any:
    return facts(await sdk.chat.completions.create(**chat(model, prompt)))


async def whole_completion(sdk: AsyncOpenAI, model: str, prompt: str) -> Any:
    return facts(await sdk.completions.create(**completion(model, prompt)))


async def whole_response(sdk: AsyncOpenAI, model: str, prompt: str) -> Any:
    return facts(await sdk.responses.create(**response(model, prompt), stream=False))


def facts(answer: BaseModel) -> Any:
    """Return all that an answer, or a piece of one, says but for its ids and times."""
    return lasting(answer.model_dump(mode="json", warnings=False))


def lasting(value: Any) -> Any:
    """Return decoded JSON without the members that are an answer's own."""
    if isinstance(value, dict):
        return {name: lasting(member) for name, member in value.items() if name not in AN_ANSWER_S_OWN}
    return [lasting(member) for member in value] if isinstance(value, list) else value


def told(chunks: list[dict[str, Any]]) -> str:
    """Return the text of a streamed chat."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize(
    "ask", [streamed_chat, streamed_completion, streamed_response, whole_chat, whole_completion, whole_response]
)
async def test_the_openai_sdk_gets_what_the_server_gives(
    ask: Ask, model_server: ModelServer, gateway: RunningGateway
) -> None:
    async with client(model_server.url) as direct, client(gateway.url) as through:
        for name, prompt in zip(NAMES * 2, PROMPTS, strict=True):
            assert await ask(through, name, prompt) == await ask(direct, model_server.model, prompt)


async def test_a_streamed_chat_tells_the_whole_one_s_text_end_and_usage(gateway: RunningGateway) -> None:
    ends = set()
    async with client(gateway.url) as sdk:
        for prompt in PROMPTS:
            pieces, whole = await streamed_chat(sdk, "tiny", prompt), await whole_chat(sdk, "tiny", prompt)
            assert len(pieces) > 10
            assert told(pieces) == whole["choices"][0]["message"]["content"]
            assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
            assert pieces[-1]["usage"] == whole["usage"]
            ends.add(whole["choices"][0]["finish_reason"])
    assert ends == {"stop", "length"}


async def test_answers_that_stream_side_by_side_do_not_mix(gateway: RunningGateway) -> None:
    async with client(gateway.url) as sdk:
        alone = [await streamed_chat(sdk, "tiny", prompt) for prompt in PROMPTS]
        together = await asyncio.gather(*(streamed_chat(sdk, "tiny", prompt) for prompt in PROMPTS * 3))
    assert together == alone * 3


async def test_a_websocket_gets_the_server_s_events_and_done(
    model_server: ModelServer, gateway: RunningGateway
) -> None:
    async with connect(f"{gateway.ws_url}/v1/ws") as socket:
        for prompt in PROMPTS:  # one after another on one socket
            await socket.send(json.dumps(chat("gpt-tiny", prompt)))
            frames = await frames_until(socket, "[DONE]")
            expected = await server_events(model_server, prompt)
            assert [lasting(json.loads(frame)) for frame in frames[:-1]] == expected


async def test_a_cancelled_websocket_answer_leaves_the_socket_usable(
    model_server: ModelServer, gateway: RunningGateway
) -> None:
    async with connect(f"{gateway.ws_url}/v1/ws") as socket:
        await socket.send(json.dumps(chat("tiny", "hi", **NEVER_ENDS)))
        for _ in range(5):
            assert "choices" in json.loads(await socket.recv())
        await socket.send('{"type":"cancel"}')
        stopped = await frames_until(socket, '{"type":"cancel"}')
        assert len(stopped) < LONG_TOKENS / 2
        await socket.send(json.dumps(chat("tiny", "hi")))
        frames = await frames_until(socket, "[DONE]")
        assert [lasting(json.loads(frame)) for frame in frames[:-1]] == await server_events(model_server, "hi")


async def test_a_client_that_leaves_closes_the_server_s_connection(model_server: ModelServer, tmp_path: Path) -> None:
    async with laid_cable(model_server.url) as cable:
        routes = f"routes: {{tiny: {{model: {json.dumps(model_server.model)}, replicas: ['{cable.url}'], {PATIENT}}}}}"
        async with running_gateway(routes, tmp_path) as gateway, client(gateway.url) as sdk:
            async with await sdk.chat.completions.create(**chat("tiny", "hi", **NEVER_ENDS), stream=True) as stream:
                for _ in range(5):
                    await anext(stream)
                assert cable.lines == 1
            async with asyncio.timeout(2):
                while cable.lines:
                    await asyncio.sleep(0.01)
            assert "client_closed" in gateway.log()


async def test_a_refusal_of_the_server_s_own_passes_as_it_is(
    model_server: ModelServer, gateway: RunningGateway
) -> None:
    async with httpx.AsyncClient() as http:
        refused = {**chat(model_server.model, "hi"), "no_such_member": 1}
        expected = await http.post(f"{model_server.url}/v1/chat/completions", json=refused)
        answer = await http.post(f"{gateway.url}/v1/chat/completions", json={**refused, "model": "tiny"})
    assert (answer.status_code, answer.content) == (expected.status_code, expected.content)
    assert answer.status_code == 422
    assert answer.headers["x-penstock-source"] == "upstream"


async def test_the_server_s_own_name_for_the_model_is_not_a_route(
    model_server: ModelServer, gateway: RunningGateway
) -> None:
    async with client(gateway.url) as sdk:
        assert {model.id async for model in sdk.models.list()} == set(NAMES)
        with pytest.raises(openai.NotFoundError) as refusal:
            await sdk.chat.completions.create(**chat(model_server.model, "hi"))
    assert refusal.value.code == "model_not_found"


async def server_events(server: ModelServer, prompt: str) -> list[Any]:
    """Ask the server itself, and return its events' data, decoded, without ids and times."""
    request = chat(server.model, prompt, stream=True)
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{server.url}/v1/chat/completions", json=request)
    return [lasting(json.loads(line[len("data: ") :])) for line in answer.text.split("\n") if line.startswith("data: ")]


async def frames_until(socket: Any, last: str) -> list[str]:
    """Receive text frames up to and with `last`. Fails at an error frame."""
    frames: list[str] = []
    async with asyncio.timeout(60):
        while not frames or frames[-1] != last:
            frames.append(await socket.recv())
            assert not frames[-1].startswith('{"error"'), frames[-1]
    return frames
