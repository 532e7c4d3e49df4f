"""The example with eight models for stages: what each answers, with and without the variables that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.config.loader import load
from tests.support.raw_client import ask, post
from tests.support.served import served
from tests.support.stages import lines, stage
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, STOP, answering, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from tests.support.raw_client import RawAnswer
    from tests.support.served import Served

EXAMPLE = Path(__file__).parents[2] / "examples" / "stages.yaml"
OLLAMA = ("traditional", "traditional_alt", "reasoning", "reasoning_alt")
OPENAI = (*OLLAMA, "local_gpu", "remote_openai")
CLAUDE = ("claude_sonnet", "claude_opus")
OLLAMA_PORT = 11434
KEY = "sk-canary"


def names(*containers: str) -> dict[str, str]:
    """The variables that name these containers' models."""
    return {f"{container.upper()}_MODEL": f"model-of-{container}" for container in containers}


def an_address_of_our_own() -> str:
    """On the loopback network, so that Ollama's port is free there."""
    high, low = divmod(os.getpid() % 60_000, 250)
    return f"127.77.{high + 1}.{low + 1}"


def example() -> str:
    return EXAMPLE.read_text().replace("port: 8080", "port: 0")


async def asked(gateway: Served, container: str, path: str = "/stream/v1/chat") -> RawAnswer:
    return await ask(gateway.port, post(path, stage(model_container=container)))


@pytest.mark.parametrize("path", ["/stream/v1/chat", "/completion/v1/chat"])
async def test_without_variables_every_container_says_what_to_look_at(path: str, tmp_path: Path) -> None:
    async with served(example(), tmp_path) as gateway:
        for container in (*OPENAI, *CLAUDE):
            got = await asked(gateway, container, path)
            assert got.status == 400
            said = json.loads(got.body)
            assert said == {"detail": f"Model {container} is not configured. Check environment variables."}
        unknown = await asked(gateway, "canary", path)
    listed = [*OPENAI, *CLAUDE]
    assert json.loads(unknown.body) == {"detail": f"Unknown model: canary. Available models: {listed}"}


async def test_with_variables_every_container_answers_under_the_name_its_server_knows(tmp_path: Path) -> None:
    script = answering(OK_EVENTS, chunk(content("hi") + STOP), LAST_CHUNK)
    host = an_address_of_our_own()
    async with scripted_upstream(script, (host, OLLAMA_PORT)) as ollama, scripted_upstream(script) as other:
        environ = {
            **names(*OPENAI, *CLAUDE),
            "OLLAMA_SERVER": host,
            "OLLAMA_ALT_SERVER": host,
            "LOCAL_GPU_URL": other.url,
            "REMOTE_OPENAI_URL": f"{other.url}/v1",
            "OPENAI_API_KEY": KEY,
            "ANTHROPIC_URL": other.url,
            "ANTHROPIC_API_KEY": KEY,
        }
        async with served(example(), tmp_path, environ) as gateway:
            for container in OPENAI:
                got = await asked(gateway, container)
                assert [line.split(" ")[0] for line in lines(got.body)] == [*["chat_completion_chunk"] * 2, "done"]
            for container in CLAUDE:
                got = await asked(gateway, container)
                assert (got.status, json.loads(got.body)) == (501, {"detail": "Unsupported protocol: anthropic"})
    requests = [*ollama.requests, *other.requests]
    assert [json.loads(request.body)["model"] for request in requests] == [f"model-of-{name}" for name in OPENAI]
    assert {request.target for request in requests} == {"/v1/chat/completions"}
    assert [request.header("authorization") for request in requests] == [*[None] * 5, f"Bearer {KEY}"]


async def test_one_variable_switches_one_container_on(tmp_path: Path) -> None:
    async with scripted_upstream(answering(OK_EVENTS, chunk(STOP), LAST_CHUNK)) as upstream:
        environ = {**names("local_gpu"), "LOCAL_GPU_URL": upstream.url}
        async with served(example(), tmp_path, environ) as gateway:
            assert (await asked(gateway, "local_gpu")).status == 200
            assert (await asked(gateway, "remote_openai")).status == 400


def test_on_a_bare_machine_the_servers_are_the_usual_ones() -> None:
    routes = load(EXAMPLE, {}).routes
    assert {routes[name].replicas[0].url for name in OLLAMA} == {f"http://localhost:{OLLAMA_PORT}"}
    assert all(replica.api_key is None for route in routes.values() for replica in route.replicas)
