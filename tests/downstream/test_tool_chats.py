"""Chat completions with `"tools": "gateway"`: over HTTP, streamed and whole, and over the bare dialect."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
import websockets

from proxy.downstream.tool_chats import leaves_tools_to_us
from proxy.request import ProxyRequest, RequestBody
from proxy.telemetry.record import EndState
from proxy.wire.sse import Parser
from tests.support.mux import content_of, mux
from tests.support.raw_client import ask, chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.tool_rounds import call, calls, piece, rounds_script, said, streamed, texts, whole
from tests.support.tool_servers import noted, with_quick_tools
from tests.support.upstream import OK_EVENTS, answer, chunk, event, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.raw_client import RawAnswer
    from tests.support.served import Served
    from tests.support.upstream import ScriptedUpstream

PATH = "/v1/chat/completions"
TOOLS = "tools: [bench.echo, bench.hold]"
ECHO = call("echo", '{"text":"hello"}', id="a")
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
ROUNDS = (
    streamed([*texts("Let me see. ")[:2], *calls(ECHO)[1:], piece(0, usage=USAGE)]),
    streamed([*texts("It said ", "hello.", number=1), piece(1, usage=USAGE)]),
)
WITH_USAGE = {"stream_options": {"include_usage": True}}


@asynccontextmanager
async def gateway_of(
    tmp_path: Path,
    *rounds: bytes,
    then: str = "close",
    words: tuple[str, ...] = (),
    settings: tuple[str, ...] = (TOOLS,),
) -> AsyncIterator[tuple[Served, ScriptedUpstream]]:
    async with scripted_upstream(rounds_script(*rounds, then=then)) as upstream:
        config = one_route(upstream.url, "retry: {attempts: 1}", "health: none", *settings)
        async with served(with_quick_tools(config, *words), tmp_path) as gateway:
            yield gateway, upstream


async def asked(gateway: Served, **members: object) -> RawAnswer:
    return await ask(gateway.port, post(PATH, {**chat(tools="gateway"), **members}))


def chunks(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    *events, last = Parser(1 << 24).feed(body)
    assert last.data == b"[DONE]"
    return [json.loads(event.data) for event in events]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def ends_of(chunks: list[dict[str, Any]]) -> list[str]:
    ends = (choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])
    return [end for end in ends if end]


@pytest.mark.parametrize(
    ("path", "raw", "ours"),
    [
        (PATH, b'{"model":"m","tools":"gateway"}', True),
        (PATH, b'{"model":"m","tools": "gateway" }', True),
        (PATH, b'{"model":"m","tools":["gateway"]}', False),
        (PATH, b'{"model":"gateway","messages":[{"tools":"gateway"}]}', False),
        (PATH, b'{"model":"m"}', False),
        ("/v1/responses", b'{"model":"m","tools":"gateway"}', False),
    ],
)
def test_the_tools_are_left_to_us_by_a_word_in_their_place(path: str, raw: bytes, ours: bool) -> None:
    request = ProxyRequest(path, "", (), (), RequestBody.parse(raw), "req_1")
    assert leaves_tools_to_us(request) is ours


async def test_a_client_gets_one_stream_of_all_rounds(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, *ROUNDS) as (gateway, upstream):
        got = await asked(gateway, temperature=0.5, tool_choice="required", **WITH_USAGE)
        record = await gateway.record()
        first, second = (json.loads(request.body) for request in upstream.requests)
    found = chunks(got.body)
    assert (got.status, got.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert got.headers["x-penstock-route"] == "m"
    assert text_of(found) == "Let me see. It said hello."
    assert {each["id"] for each in found} == {"chatcmpl-0"}
    assert [choice["finish_reason"] for each in found for choice in each["choices"] if choice["finish_reason"]] == [
        "stop"
    ]
    assert b"tool_calls" not in got.body
    assert found[-1]["usage"] == {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}
    assert [tool["function"]["name"] for tool in first["tools"]] == ["echo", "hold"]
    assert (first["temperature"], first["tool_choice"]) == (0.5, "required")
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert "tool_choice" not in second
    assert (record.status, record.end_state, record.transport) == (200, EndState.COMPLETED, "sse")
    assert (record.rounds, record.tool_calls, record.attempts) == (2, 1, 2)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (20, 4, False)


async def test_usage_nobody_asked_for_is_only_counted(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, *ROUNDS) as (gateway, _):
        got = await asked(gateway)
        record = await gateway.record()
    assert b"usage" not in got.body
    assert (record.tokens_in, record.tokens_out) == (20, 4)


async def test_openais_own_client_reads_it(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, *ROUNDS) as (gateway, _):
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                extra_body={"tools": "gateway"},
            )
            deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(deltas) == "Let me see. It said hello."


async def test_a_whole_answer_is_the_last_rounds_with_the_sum_of_the_usage(tmp_path: Path) -> None:
    rounds = (whole(None, ECHO, usage=USAGE), whole("It said hello.", usage=USAGE))
    async with gateway_of(tmp_path, *rounds) as (gateway, _):
        got = await asked(gateway, stream=False)
        record = await gateway.record()
    told = json.loads(got.body)
    assert (got.status, got.headers["content-type"]) == (200, "application/json")
    assert told["choices"][0]["message"]["content"] == "It said hello."
    assert told["choices"][0]["finish_reason"] == "stop"
    assert told["usage"] == {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}
    assert (record.end_state, record.transport, record.bytes_out) == (EndState.COMPLETED, "http", len(got.body))
    assert (record.rounds, record.tool_calls, record.tokens_in) == (2, 1, 20)


async def test_max_rounds_end_an_answer_for_its_length(tmp_path: Path) -> None:
    settings = (TOOLS, "toolchain: {max_rounds: 1}")
    async with gateway_of(tmp_path, ROUNDS[0], whole("More?", ECHO), settings=settings) as (gateway, _):
        got = await asked(gateway)
        one_piece = json.loads((await asked(gateway, stream=False)).body)["choices"][0]
    assert ends_of(chunks(got.body)) == ["length"]
    assert (one_piece["finish_reason"], one_piece["message"]) == ("length", {"role": "assistant", "content": "More?"})


# ---- what goes wrong ----

REFUSED = answer(429, b'{"error":{"message":"slow down"}}', b"Retry-After: 7")


@pytest.mark.parametrize("streams", [True, False])
async def test_a_refusal_passes_as_it_came(streams: bool, tmp_path: Path) -> None:
    async with gateway_of(tmp_path, REFUSED) as (gateway, _):
        got = await asked(gateway, stream=streams)
        record = await gateway.record()
    assert (got.status, got.body) == (429, b'{"error":{"message":"slow down"}}')
    assert (got.headers["retry-after"], record.end_state) == ("7", EndState.UPSTREAM_REJECTED)


@pytest.mark.parametrize(
    ("settings", "members", "message"),
    [
        ((), {}, "Model m has no tools here: name some under its `tools` in routes.yaml, or send your own."),
        ((TOOLS,), {"n": 2}, "With tools that the gateway runs there is one choice: leave `n` out."),
        ((TOOLS,), {"messages": "hi"}, "`messages` is not a list: send one."),
    ],
)
async def test_what_cannot_be_done_is_refused_with_what_to_do(
    settings: tuple[str, ...], members: dict[str, object], message: str, tmp_path: Path
) -> None:
    async with gateway_of(tmp_path, settings=settings) as (gateway, upstream):
        got = await asked(gateway, **members)
        assert upstream.requests == []
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"], told["message"]) == (400, "invalid_request", message)


CUT = OK_EVENTS + chunk(event(said(1, content="It ")))


async def test_a_round_that_breaks_off_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, ROUNDS[0], CUT, then="reset") as (gateway, _):
        got = await asked(gateway)
        record = await gateway.record()
    assert b"[DONE]" not in got.body
    assert b'data: {"error":{"message":"the connection was lost' in got.body
    assert (record.status, record.end_state) == (200, EndState.UPSTREAM_TRUNCATED)


async def test_silence_before_the_first_word_is_broken_and_then_told(tmp_path: Path) -> None:
    settings = (TOOLS, "keepalive: 30ms", "timeouts: {first_token: 80ms}")
    async with gateway_of(tmp_path, b"", then="hang", settings=settings) as (gateway, _):
        got = await asked(gateway)
        record = await gateway.record()
    assert got.status == 200
    assert got.body.startswith(b": ping\n")
    assert b'"code":"first_token_timeout"' in got.body
    assert (record.status, record.end_state) == (200, EndState.FIRST_TOKEN_TIMEOUT)


async def test_silence_of_a_tool_is_broken(tmp_path: Path) -> None:
    settings = (TOOLS, "keepalive: 30ms", "timeouts: {total: 150ms}")
    async with gateway_of(tmp_path, streamed(calls(call("hold"))), settings=settings) as (gateway, _):
        got = await asked(gateway)
    assert b": ping\n" in got.body
    assert b'"code":"upstream_timeout"' in got.body


async def test_a_client_that_leaves_during_a_tool_cancels_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with gateway_of(tmp_path, streamed(calls(call("hold"))), words=(f"notes={notes}",)) as (gateway, _):
        async with raw_client(gateway.port) as client:
            await client.send(post(PATH, chat(tools="gateway")))
            await noted(notes, "hold")
            client.leave()
            await noted(notes, "cancelled")
        record = await gateway.record()
    assert (record.end_state, record.tool_calls) == (EndState.CLIENT_CLOSED, 1)


async def test_a_drain_that_is_over_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with scripted_upstream(rounds_script(streamed(calls(call("hold"))))) as upstream:
        config = one_route(upstream.url, TOOLS, server="port: 0\ndrain: 50ms")
        async with served(with_quick_tools(config, f"notes={notes}"), tmp_path) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(post(PATH, chat(tools="gateway")))
                await noted(notes, "hold")
                draining = asyncio.create_task(gateway.gateway.drain())
                got = await client.answer()
                await draining
            record = await gateway.record()
    assert b'"code":"draining"' in got.body
    assert record.end_state is EndState.DRAINED


# ---- over a WebSocket ----


async def heard(socket: websockets.ClientConnection) -> list[str]:
    frames: list[str] = []
    async with asyncio.timeout(5):
        while not frames or not (frames[-1] == "[DONE]" or "error" in json.loads(frames[-1])):
            frames.append(str(await socket.recv()))
    return frames


async def test_a_socket_gets_the_same_chunks_as_frames(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, *ROUNDS) as (gateway, _):
        async with websockets.connect(f"{gateway.ws_url}/v1/ws") as socket:
            await socket.send(json.dumps({**chat(tools="gateway"), **WITH_USAGE}))
            *frames, last = await heard(socket)
            record = await gateway.record()
    assert last == "[DONE]"
    found = [json.loads(frame) for frame in frames]
    assert text_of(found) == "Let me see. It said hello."
    assert found[-1]["usage"]["total_tokens"] == 24
    assert (record.transport, record.end_state, record.rounds) == ("ws", EndState.COMPLETED, 2)


@pytest.mark.parametrize(
    ("rounds", "status", "message"),
    [((REFUSED,), 429, "slow down"), ((ROUNDS[0], REFUSED), 502, "slow down")],
    ids=["first round", "second round"],
)
async def test_a_socket_is_told_of_a_refusal_and_stays(
    rounds: tuple[bytes, ...], status: int, message: str, tmp_path: Path
) -> None:
    async with gateway_of(tmp_path, *rounds) as (gateway, _):
        async with websockets.connect(f"{gateway.ws_url}/v1/ws") as socket:
            await socket.send(json.dumps(chat(tools="gateway")))
            told = json.loads((await heard(socket))[-1])
            await socket.send(json.dumps(chat(tools="gateway", model="x")))
            assert json.loads((await heard(socket))[-1])["status"] == 404
    assert (told["status"], told["error"]["message"]) == (status, message)


async def test_a_cancel_on_a_socket_stops_the_tool(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with gateway_of(tmp_path, streamed(calls(call("hold"))), words=(f"notes={notes}",)) as (gateway, _):
        async with websockets.connect(f"{gateway.ws_url}/v1/ws") as socket:
            await socket.send(json.dumps(chat(tools="gateway")))
            await noted(notes, "hold")
            await socket.send('{"type":"cancel"}')
            await noted(notes, "cancelled")
            record = await gateway.record()
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.CLIENT_CLOSED, 1, 1)


# ---- over mux ----


async def test_over_mux_the_tools_are_run_too_and_the_end_has_the_sum(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, *ROUNDS) as (gateway, upstream), mux(gateway) as client:
        await client.start(body=chat(tools="gateway"))
        accepted, *frames, done = await client.ended()
        record = await gateway.record()
        first, second = (json.loads(request.body) for request in upstream.requests)
    assert accepted["type"] == "accepted"
    assert "".join(content_of(frames)) == "Let me see. It said hello."
    assert [frame["seq"] for frame in [*frames, done]] == list(range(1, len(frames) + 2))
    assert "tool_calls" not in json.dumps(frames)
    assert done["data"]["usage"] == {"prompt_tokens": 20, "completion_tokens": 4}
    assert [tool["function"]["name"] for tool in first["tools"]] == ["echo", "hold"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert (record.status, record.end_state, record.dialect) == (200, EndState.COMPLETED, "mux")
    assert (record.rounds, record.tool_calls, record.attempts, record.tokens_in) == (2, 1, 2, 20)


async def test_over_mux_counts_that_are_only_estimated_are_not_told(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, streamed(texts("Hello."))) as (gateway, _), mux(gateway) as client:
        await client.start(body=chat(tools="gateway"))
        *_, done = await client.ended()
        record = await gateway.record()
    assert "usage" not in done["data"]
    assert record.tokens_estimated


async def test_over_mux_a_whole_answer_is_one_result(tmp_path: Path) -> None:
    rounds = (whole("Let me see. ", ECHO), whole("It said hello."))
    async with gateway_of(tmp_path, *rounds) as (gateway, _), mux(gateway) as client:
        await client.start(body={**chat(tools="gateway"), "stream": False})
        _, result, done = await client.ended()
        record = await gateway.record()
    assert result["type"] == "result"
    assert "It said hello." in result["data"]["result"]["choices"][0]["message"]["content"]
    assert done["type"] == "done"
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.COMPLETED, 2, 1)


async def test_over_mux_a_cancel_stops_the_tool_that_runs(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with gateway_of(tmp_path, streamed(calls(call("hold"))), words=(f"notes={notes}",)) as (gateway, _):
        async with mux(gateway) as client:
            await client.start(body=chat(tools="gateway"))
            await noted(notes, "hold")
            await client.say("cancel", rid="r1")
            *_, cancelled = await client.ended()
            record = await gateway.record()
    assert (cancelled["type"], cancelled["data"]["reason"]) == ("cancel", "client")
    assert (record.end_state, record.rounds) == (EndState.CLIENT_CLOSED, 1)


async def test_over_mux_a_route_without_tools_says_so(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, settings=()) as (gateway, upstream), mux(gateway) as client:
        await client.start(body=chat(tools="gateway"))
        [error] = await client.ended()
        assert upstream.requests == []
    assert (error["status"], error["data"]["error"]["param"]) == (400, "tools")


async def test_over_mux_a_refusal_of_the_first_round_keeps_its_status(tmp_path: Path) -> None:
    refusal = answer(429, b'{"error":{"message":"slow down","code":"busy"}}', b"Retry-After: 3")
    async with gateway_of(tmp_path, refusal) as (gateway, _), mux(gateway) as client:
        await client.start(body=chat(tools="gateway"))
        [error] = await client.ended()
        record = await gateway.record()
    assert (error["status"], error["retry_after_ms"], error["data"]["error"]["code"]) == (429, 3000, "busy")
    assert (record.status, record.end_state) == (429, EndState.UPSTREAM_REJECTED)
