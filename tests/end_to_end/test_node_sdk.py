"""The official JavaScript SDK, run by node, as a client of the real gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.gateway import running_gateway
from tests.support.model_server import PATIENT

if TYPE_CHECKING:
    from tests.support.model_server import ModelServer

pytestmark = pytest.mark.real_server

SCRIPTS = Path(__file__).parents[1] / "node"
NODE_TIMEOUT_S = 60.0
DEMO = "discover: false\nroutes: {echo: 'demo://?tokens=40&interval=2ms&first=10ms'}\n"


def chat(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


async def test_the_sdk_streams_the_built_in_model_s_answer(tmp_path: Path) -> None:
    request = chat("echo", "What does a penstock do? ¿Y en español? 🌊")
    async with running_gateway(DEMO, tmp_path) as gateway:
        chunks = await streamed(gateway.url, request)
        whole = await answer(gateway.url, request)
    contents = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert len([content for content in contents if content]) == 40
    assert text(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


async def test_the_sdk_streams_a_real_server_s_answer(model_server: ModelServer, tmp_path: Path) -> None:
    routes = f"""
discover: false
routes:
  tiny: {{model: {json.dumps(model_server.model)}, replicas: ["{model_server.url}"], {PATIENT}}}
"""
    request = chat("tiny", "Tell me about water", temperature=0, max_tokens=60)
    async with running_gateway(routes, tmp_path) as gateway:
        chunks = await streamed(gateway.url, request)
    expected = await answer(model_server.url, {**request, "model": model_server.model})
    assert text(chunks) == expected["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == expected["usage"]


async def test_an_abort_closes_the_upstream_connection(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def stream_forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer any request with an endless chat, until the other side hangs up."""
        event = (
            b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"on "}}]}\n\n'
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        gone = asyncio.ensure_future(reader.read())  # ends when the other side hangs up
        while not (await asyncio.wait([gone], timeout=0.01))[0]:
            writer.write(event)
        writer.close()
        closed.set()

    async with await asyncio.start_server(stream_forever, "127.0.0.1", 0) as upstream:
        port = upstream.sockets[0].getsockname()[1]
        routes = f"discover: false\nroutes: {{endless: {{replicas: ['http://127.0.0.1:{port}'], health: none}}}}\n"
        async with running_gateway(routes, tmp_path) as gateway, asyncio.timeout(NODE_TIMEOUT_S):
            node = await start_node("abort_chat.mjs", f"{gateway.url}/v1", json.dumps(chat("endless", "hi")), "5")
            assert node.stdin
            assert node.stdout
            assert node.stderr
            seen = await node.stdout.readline()
            assert seen, (await node.stderr.read()).decode()
            assert int(seen) >= 5
            async with asyncio.timeout(1):
                await closed.wait()
            assert node.returncode is None  # it was the abort, not the end of the program
            node.stdin.close()
            assert await node.wait() == 0


async def streamed(root: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks that the SDK gets, decoded."""
    node = await start_node("stream_chat.mjs", f"{root}/v1", json.dumps(request))
    async with asyncio.timeout(NODE_TIMEOUT_S):
        output, complaints = await node.communicate()
    assert node.returncode == 0, complaints.decode()
    return [json.loads(line) for line in output.split(b"\n") if line]


async def answer(root: str, request: dict[str, Any]) -> Any:
    """Return the whole answer to a request, decoded, without any SDK."""
    async with httpx.AsyncClient(timeout=60) as http:
        return (await http.post(f"{root}/v1/chat/completions", json=request)).raise_for_status().json()


def text(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


async def start_node(script: str, *arguments: str) -> asyncio.subprocess.Process:
    node = shutil.which("node")
    if node is None or not (SCRIPTS / "node_modules" / "openai").exists():
        pytest.fail("no node, or no npm packages here: run scripts/install node", pytrace=False)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        node, str(SCRIPTS / script), *arguments, stdin=pipe, stdout=pipe, stderr=pipe
    )
