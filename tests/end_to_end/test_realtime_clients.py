"""Realtime with the clients people have: OpenAI's SDKs for Python and JavaScript, in front of the real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from tests.support.gateway import running_gateway
from tests.support.realtime_server import realtime_server
from tests.support.tls import certificate

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

    from tests.support.realtime_server import RealtimeServer

pytestmark = pytest.mark.real_server

SCRIPTS = Path(__file__).parents[1] / "node"
WORDS = ("Wa", "ter.")
ANSWER = ["session.created", "response.created", *["response.output_text.delta"] * 2, "response.done"]


async def converse(connection: ServerConnection) -> None:
    """A model server that says two words when it is asked for a response."""
    await connection.send('{"type":"session.created","event_id":"e0","session":{"id":"s","type":"realtime"}}')
    async for message in connection:
        if json.loads(message)["type"] == "response.create":
            await connection.send('{"type":"response.created","event_id":"e1","response":{"id":"r"}}')
            for word in WORDS:
                said = {"type": "response.output_text.delta", "event_id": "e2", "response_id": "r", "delta": word}
                await connection.send(json.dumps(said))
            await connection.send('{"type":"response.done","event_id":"e3","response":{"id":"r"}}')


def routes(server: RealtimeServer, *more: str) -> str:
    lines = "\n".join(more)
    return f"""
discover: false
{lines}
auth: {{keys: [{{name: web, key: sk-web}}]}}
routes:
  voice: {{model: gpt-realtime, replicas: [{{url: "{server.url}", api_key: sk-of-the-replica}}]}}
"""


def asked(server: RealtimeServer) -> dict[str, str | None]:
    """What the model server was asked with."""
    [request] = server.requests
    names = ("Authorization", "Sec-WebSocket-Protocol")
    return {"path": request.path, **{name: request.headers.get(name) for name in names}}


async def test_the_python_sdk_holds_a_session(tmp_path: Path) -> None:
    async with realtime_server(converse) as server, running_gateway(routes(server), tmp_path) as gateway:
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="sk-web")
        events: list[Any] = []
        async with client.realtime.connect(model="voice") as connection:
            await connection.response.create()
            async with asyncio.timeout(20):
                async for event in connection:
                    events.append(event)
                    if event.type == "response.done":
                        break
        assert await server.closed() == (1000, "")
        await client.close()
    assert [event.type for event in events] == ANSWER
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Water."
    told = asked(server)
    assert (told["path"], told["Authorization"]) == ("/v1/realtime?model=gpt-realtime", "Bearer sk-of-the-replica")
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize("where", ["node", "page"])
async def test_the_javascript_sdk_holds_a_session(where: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (SCRIPTS / "node_modules" / "ws").exists():
        pytest.fail("no node, or no npm packages here: run scripts/install node", pytrace=False)
    own, key = certificate(tmp_path)  # this SDK takes wss:// for granted
    tls = f"server: {{tls: {{certificate: {own}, key: {key}}}}}"
    async with realtime_server(converse) as server, running_gateway(routes(server, tls), tmp_path) as gateway:
        speaking = await asyncio.create_subprocess_exec(
            *(node, str(SCRIPTS / "speak.mjs"), f"{gateway.url}/v1", "sk-web", "voice", where),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(own)},
        )
        async with asyncio.timeout(60):
            printed, _ = await speaking.communicate()
        code, _ = await server.closed()
    *events, end = [json.loads(line) for line in printed.splitlines()]
    assert [event.get("type") for event in events] == ANSWER
    assert end == {"close": 1000, "protocol": "realtime" if where == "page" else ""}
    assert code == 1000
    assert asked(server) == {
        "path": "/v1/realtime?model=gpt-realtime",
        "Authorization": "Bearer sk-of-the-replica",
        "Sec-WebSocket-Protocol": "realtime" if where == "page" else None,
    }
    assert "sk-web" not in gateway.log()
