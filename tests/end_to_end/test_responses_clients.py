"""The official SDKs speak Responses over a WebSocket to the real gateway: turns, tools, lanes, errors, restarts."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import ResponseFunctionToolCall

from tests.support.gateway import RunningGateway, running_gateway

if TYPE_CHECKING:
    from openai.resources.responses.responses import AsyncResponsesConnection, ResponsesConnection
    from openai.types.responses.responses_server_event import ResponsesServerEvent

pytestmark = pytest.mark.real_server

SCRIPTS = Path(__file__).parents[1] / "node"
PATIENCE_S = 30.0
KEY = "sk-penstock-test-0123456789"
DEMO = f"""
discover: false
auth: {{keys: [{{name: team, key: {KEY}}}]}}
routes: {{echo: 'demo://?tokens=20&interval=1ms&first=2ms', slow: 'demo://?tokens=500&interval=20ms'}}
"""
LAST = {"response.completed", "response.failed", "response.incomplete", "error"}
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def client(gateway: RunningGateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)


async def answer(connection: AsyncResponsesConnection) -> Any:
    """The event that ends a response. A completed one must say what its deltas said, under the id it began with."""
    text, id = "", None
    async with asyncio.timeout(PATIENCE_S):
        async for event in connection:
            if event.type == "response.created":
                id = event.response.id
            elif event.type == "response.output_text.delta":
                text += event.delta
            elif event.type in LAST:
                if event.type == "response.completed":
                    assert (event.response.id, event.response.output_text) == (id, text)
                return event
    raise AssertionError("the connection closed before the response ended")


# ---- openai for Python ----


async def test_a_conversation_goes_on_turn_by_turn(tmp_path: Path) -> None:
    tokens_in = []
    async with running_gateway(DEMO, tmp_path) as gateway, client(gateway).responses.connect() as connection:
        more: Any = {}
        for text in ("What does a penstock do?", "And a sluice?", "¿Y una compuerta? 🌊"):
            await connection.response.create(model="echo", input=text, store=False, **more)
            response = (await answer(connection)).response
            more = {"previous_response_id": response.id}
            tokens_in.append(response.usage.input_tokens)
    assert tokens_in[0] + 20 < tokens_in[1]  # with each turn the model reads what was said before
    assert tokens_in[1] + 20 < tokens_in[2]


async def test_a_tools_result_is_all_that_is_sent_after_its_call(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path) as gateway, client(gateway).responses.connect() as connection:
        await connection.response.create(model="echo", input="Weather?", tools=[TOOL], tool_choice="required")
        called = (await answer(connection)).response
        [call] = called.output
        assert isinstance(call, ResponseFunctionToolCall)
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "a drizzle in Oslo"}
        await connection.response.create(
            model="echo", previous_response_id=called.id, input=[result], tools=[TOOL], tool_choice="none"
        )
        told = (await answer(connection)).response
    assert "drizzle" in told.output_text


async def test_a_warm_up_is_gone_on_from(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path) as gateway, client(gateway).responses.connect() as connection:
        await connection.response.create(model="echo", input="Prepare for many words to come.", generate=False)
        prepared = (await answer(connection)).response
        assert (prepared.output, prepared.usage.total_tokens) == ([], 0)
        await connection.response.create(model="echo", input="Go.", previous_response_id=prepared.id)
        assert (await answer(connection)).response.usage.input_tokens > 6


async def test_an_error_reads_as_one_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path) as gateway, client(gateway).responses.connect() as connection:
        await connection.response.create(model="echo", input="x", previous_response_id="resp_0", stream_id="a")
        event = await answer(connection)
        assert (event.type, event.status, event.stream_id) == ("error", 400, "a")
        assert event.error.code == "previous_response_not_found"
        await connection.response.create(model="echo", input="x")
        assert (await answer(connection)).type == "response.completed"


def fork(connection: ResponsesConnection) -> dict[str, int]:
    """Two conversations at once; then one is forked, and both branches go on. How long each lane's last input is."""
    ids: dict[str, str] = {}
    tokens_in: dict[str, int] = {}

    def create(lane: str, text: str, previous: str | None = None) -> None:
        more: Any = {} if previous is None else {"previous_response_id": previous}
        connection.response.create(stream_id=lane, model="echo", store=False, input=text, **more)

    def until_complete(lanes: set[str]) -> None:
        while lanes:
            event: ResponsesServerEvent = connection.recv()
            assert event.type not in LAST - {"response.completed"}, event
            assert event.stream_id in {"planner", "research", "critic"}
            if event.type == "response.completed":
                assert event.response.usage is not None
                ids[event.stream_id] = event.response.id
                tokens_in[event.stream_id] = event.response.usage.input_tokens
                lanes.discard(event.stream_id)

    create("planner", "Draft a plan.")
    create("research", "List the risks.")
    until_complete({"planner", "research"})
    planned = ids["planner"]
    create("critic", "Find gaps.", planned)
    create("planner", "Add a way back, and a watch.", planned)
    until_complete({"critic", "planner"})
    return tokens_in


@pytest.mark.filterwarnings(
    "ignore:connect.. must be used as a context manager:DeprecationWarning"
)  # the SDK's own way
async def test_lanes_run_side_by_side_and_fork(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path) as gateway:

        def run() -> dict[str, int]:
            with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY).responses.connect() as connection:
                return fork(connection)

        tokens_in = await asyncio.wait_for(asyncio.to_thread(run), PATIENCE_S)
    assert min(tokens_in["critic"], tokens_in["planner"]) > tokens_in["research"] + 20


async def test_a_client_that_may_reconnect_does_after_a_restart(tmp_path: Path) -> None:
    reconnected: list[int] = []

    def note(event: Any) -> Any:
        reconnected.append(event.close_code)
        return {"abort": True}

    async with running_gateway(DEMO, tmp_path) as gateway:
        async with client(gateway).responses.connect(on_reconnecting=note) as connection:
            await connection.response.create(model="echo", input="hi")
            await answer(connection)
            gateway.process.terminate()
            async with asyncio.timeout(PATIENCE_S):
                async for event in connection:
                    raise AssertionError(event)
    assert reconnected == [1001]


# ---- openai for JavaScript ----


async def start_node(gateway: RunningGateway) -> asyncio.subprocess.Process:
    node = shutil.which("node")
    if node is None or not (SCRIPTS / "node_modules" / "ws").exists():
        pytest.fail("no node, or no npm packages here: run scripts/install node", pytrace=False)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(node, str(SCRIPTS / "respond.mjs"), f"{gateway.url}/v1", KEY), stdin=pipe, stdout=pipe, stderr=pipe
    )


async def send(node: asyncio.subprocess.Process, *requests: dict[str, str]) -> None:
    assert node.stdin is not None
    messages = [{"type": "response.create", "model": "echo", **request} for request in requests]
    node.stdin.write(json.dumps(messages).encode() + b"\n")
    await node.stdin.drain()


async def seen(node: asyncio.subprocess.Process, ends: int) -> list[Any]:
    """What the SDK gives its user, up to so many ends of responses."""
    assert node.stdout is not None
    assert node.stderr is not None
    events: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len([event for event in events if event.get("type") in LAST]) < ends:
            line = await node.stdout.readline()
            assert line, (await node.stderr.read()).decode()
            events.append(json.loads(line))
    return events


async def test_the_javascript_sdk_holds_conversations_in_lanes(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path) as gateway:
        node = await start_node(gateway)
        await send(node, {"input": "one", "stream_id": "a"}, {"input": "two", "stream_id": "b"}, {"input": "three"})
        events = await seen(node, 3)
        ends = {event.get("stream_id"): event["response"] for event in events if event["type"] == "response.completed"}
        assert set(ends) == {"a", "b", None}
        for lane, response in ends.items():
            own = [event for event in events if event.get("stream_id") == lane]
            text = "".join(event["delta"] for event in own if event["type"] == "response.output_text.delta")
            assert text == response["output"][0]["content"][0]["text"]
            assert [event["sequence_number"] for event in own] == [*range(len(own))]
        await send(node, {"input": "more", "stream_id": "a", "previous_response_id": ends["b"]["id"]})
        [*_, last] = await seen(node, 1)
        assert last["response"]["usage"]["input_tokens"] > ends["b"]["usage"]["input_tokens"] + 20
        await send(node, {"input": "x", "model": "nope"})
        [*_, error] = await seen(node, 1)
        assert (error["status"], error["error"]["code"]) == (404, "model_not_found")
        assert node.stdin is not None
        node.stdin.close()
        output, complaints = await asyncio.wait_for(node.communicate(), PATIENCE_S)
    assert node.returncode == 0, complaints.decode()
    assert [json.loads(line) for line in output.splitlines()][-1] == {"close": 1000}


async def test_the_javascript_sdk_leaves_in_the_middle_and_nothing_goes_on(tmp_path: Path) -> None:
    async with running_gateway(DEMO, tmp_path, "--log-format", "json") as gateway:
        node = await start_node(gateway)
        await send(node, {"input": "hi", "model": "slow"})
        assert node.stdout is not None
        while json.loads(await node.stdout.readline())["type"] != "response.output_text.delta":
            pass
        node.kill()
        await node.communicate()
        async with asyncio.timeout(2):
            while '"end_state":"client_closed"' not in gateway.log().replace(" ", ""):
                await asyncio.sleep(0.01)
