"""The official `anthropic` SDK as a client of the real gateway, in front of the built-in model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from tests.support.gateway import running_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from anthropic.types import Message

pytestmark = pytest.mark.real_server

ROUTES = "discover: false\nroutes: {echo: 'demo://?tokens=40&interval=2ms&first=10ms'}\n"


def client(root: str) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=root, api_key="unused", max_retries=0, timeout=60)


def ask(prompt: str, model: str = "echo") -> dict[str, Any]:
    """The members of a messages request."""
    return {"model": model, "max_tokens": 200, "messages": [{"role": "user", "content": prompt}]}


def text(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


async def test_a_streamed_message_tells_the_whole_one_s_text_end_and_usage(tmp_path: Path) -> None:
    request = ask("What does a penstock do? 水 🌊")
    async with running_gateway(ROUTES, tmp_path) as gateway, client(gateway.url) as sdk:
        async with sdk.messages.stream(**request) as stream:
            pieces = [piece async for piece in stream.text_stream]
            streamed = await stream.get_final_message()
        whole = await sdk.messages.create(**request)
    assert len(pieces) == 40
    assert "".join(pieces) == text(streamed) == text(whole)
    assert streamed.stop_reason == whole.stop_reason == "end_turn"
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == (whole.usage.input_tokens, 40)


async def test_the_models_are_listed_in_anthropic_s_shape(tmp_path: Path) -> None:
    async with running_gateway(ROUTES, tmp_path) as gateway, client(gateway.url) as sdk:
        models = [model async for model in sdk.models.list()]
    assert [(model.id, model.type) for model in models] == [("echo", "model")]


async def test_an_unknown_model_is_a_not_found_error(tmp_path: Path) -> None:
    async with running_gateway(ROUTES, tmp_path) as gateway, client(gateway.url) as sdk:
        with pytest.raises(anthropic.NotFoundError) as refusal:
            await sdk.messages.create(**ask("hi", model="nobody"))
    assert isinstance(refusal.value.body, dict)
    assert refusal.value.body["error"]["type"] == "not_found_error"
