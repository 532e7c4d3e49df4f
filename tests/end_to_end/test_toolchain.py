"""The toolchain as transcripts: a request in, the model's answers in, events out; over HTTP and over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import websockets

from proxy.telemetry.record import EndState
from tests.support.gateway import running_gateway
from tests.support.mux import mux
from tests.support.raw_client import ask, post, raw_client
from tests.support.served import one_route, served
from tests.support.stages import framed, lines, stage
from tests.support.tool_rounds import call, calls, piece, rounds_script, said, streamed, texts, whole
from tests.support.tool_servers import noted, with_quick_tools
from tests.support.upstream import OK_EVENTS, answer, chunk, event, scripted_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.served import Served
    from tests.support.upstream import ScriptedUpstream

PATH, WHOLE_PATH = "/stream/v1/toolchain", "/completion/v1/toolchain"
TOOLS = "tools: [bench.echo, bench.fail, bench.hold]"
ONCE = "retry: {attempts: 1}"
ECHO = call("echo", '{"text":"hello"}', id="a")
ECHOED = '{"id":"a","name":"echo","arguments":{"text":"hello"},"result":"hello","is_error":false,"duration_ms":0}'
LOST = "The connection was lost before the answer was whole. Send the request again."


def passed(*chunks: bytes, kind: str = "chat_completion_chunk", member: str = "chunk") -> list[str]:
    """The lines of these chunks of the model's."""
    return [f"{kind} {_compact({member: json.loads(each)})}" for each in chunks]


def synthesised(*chunks: bytes) -> list[str]:
    return passed(*chunks, kind="tool_completion_chunk", member="tool_results")


def summary(number: int, *results: str) -> str:
    return f'tool_summary {{"tool_summary":{{"round":{number},"calls":[{",".join(results)}]}}}}'


def result(id: str, name: str, arguments: str, text: str, *, is_error: bool = False) -> str:
    told = {"result": text, "is_error": is_error, "duration_ms": 0}
    return f'{{"id":"{id}","name":"{name}","arguments":{arguments},{_compact(told)[1:]}'


def error(sentence: str) -> str:
    return f"error {_compact({'error': sentence})}"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Transcript:
    """`rounds` are the model's answers, after the last of which it does what `then` says; `told` the events' lines,
    without durations. `asks` is what the model was asked, as the roles of its messages, request by request."""

    rounds: tuple[bytes, ...]
    told: list[str]
    asks: list[str]
    request: dict[str, object] = field(default_factory=dict)
    settings: tuple[str, ...] = (TOOLS,)
    then: str = "close"
    end_state: EndState = EndState.COMPLETED
    tool_calls: int = 0


HI = texts("Good ", "day.")
ONE_CALL = calls(ECHO)
THREE = calls(*(call("echo", f'{{"text":"{at}"}}', index=at, id=f"c{at}") for at in range(3)))
FAIL, HOLD, SING = (calls(call(name, id="f"), number=1) for name in ("fail", "hold", "sing"))
HALF = calls(call("echo", "{half", id="h"))
LAST, PROSE = texts("It said hello.", number=2), texts("In ", "prose.", number=3)
CUT = (said(1, role="assistant", content="It "),)
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}

TRANSCRIPTS = {
    "no tool called": Transcript((streamed(HI),), [*passed(*HI), "done {}"], ["user"]),
    "one tool": Transcript(
        (streamed(ONE_CALL), streamed(LAST)),
        [*passed(*ONE_CALL), summary(1, ECHOED), *passed(*LAST), "done {}"],
        ["user", "user assistant tool"],
        tool_calls=1,
    ),
    "three at once": Transcript(
        (streamed(THREE), streamed(LAST)),
        [
            *passed(*THREE),
            summary(1, *(result(f"c{at}", "echo", f'{{"text":"{at}"}}', str(at)) for at in range(3))),
            *passed(*LAST),
            "done {}",
        ],
        ["user", "user assistant tool tool tool"],
        tool_calls=3,
    ),
    "two rounds, the second with a failing tool": Transcript(
        (streamed(ONE_CALL), streamed(FAIL), streamed(LAST)),
        [
            *(*passed(*ONE_CALL), summary(1, ECHOED)),
            *(*passed(*FAIL), summary(2, result("f", "fail", "{}", "", is_error=True))),
            *(*passed(*LAST), "done {}"),
        ],
        ["user", "user assistant tool", "user assistant tool assistant tool"],
        tool_calls=2,
    ),
    "a hanging tool": Transcript(
        (streamed(HOLD), streamed(LAST)),
        [
            *passed(*HOLD),
            summary(1, result("f", "hold", "{}", 'tool server "bench" did not answer within 0.3 s', is_error=True)),
            *(*passed(*LAST), "done {}"),
        ],
        ["user", "user assistant tool"],
        tool_calls=1,
    ),
    "a tool that the model made up": Transcript(
        (streamed(SING), streamed(LAST)),
        [
            *passed(*SING),
            summary(
                1, result("f", "sing", "{}", 'there is no tool "sing"; there are: echo, fail, hold', is_error=True)
            ),
            *(*passed(*LAST), "done {}"),
        ],
        ["user", "user assistant tool"],
        tool_calls=1,
    ),
    "arguments that are no JSON": Transcript(
        (streamed(HALF), streamed(LAST)),
        [
            *passed(*HALF),
            summary(1, result("h", "echo", '"{half"', "the arguments are not a JSON object: {half", is_error=True)),
            *(*passed(*LAST), "done {}"),
        ],
        ["user", "user assistant tool"],
        tool_calls=1,
    ),
    "max_rounds reached": Transcript(
        (streamed(ONE_CALL), streamed(ONE_CALL), streamed(LAST)),
        [*passed(*ONE_CALL), summary(1, ECHOED), *passed(*ONE_CALL), summary(2, ECHOED), "done {}"],
        ["user", "user assistant tool"],
        settings=(TOOLS, "toolchain: {max_rounds: 2}"),
        tool_calls=2,
    ),
    "synthesis": Transcript(
        (streamed(ONE_CALL), streamed(LAST), streamed(PROSE)),
        [*passed(*ONE_CALL), summary(1, ECHOED), *passed(*LAST), *synthesised(*PROSE), "done {}"],
        ["user", "user assistant tool", "user assistant tool"],
        request={"synthesis": True},
        tool_calls=1,
    ),
    "synthesis after max_rounds": Transcript(
        (streamed(ONE_CALL), streamed(PROSE)),
        [*passed(*ONE_CALL), summary(1, ECHOED), *synthesised(*PROSE), "done {}"],
        ["user", "user assistant tool"],
        request={"synthesis": True},
        settings=(TOOLS, "toolchain: {max_rounds: 1}"),
        tool_calls=1,
    ),
    "synthesis without tools": Transcript(
        (streamed(HI), streamed(PROSE)),
        [*passed(*HI), *synthesised(*PROSE), "done {}"],
        ["user", "user"],
        request={"synthesis": True},
        settings=(),
    ),
    "cut in the second round": Transcript(
        (streamed(ONE_CALL), OK_EVENTS + chunk(b"".join(map(event, CUT)))),
        [*passed(*ONE_CALL), summary(1, ECHOED), *passed(*CUT), error(LOST)],
        ["user", "user assistant tool"],
        then="reset",
        end_state=EndState.UPSTREAM_TRUNCATED,
        tool_calls=1,
    ),
    "refused in the second round": Transcript(
        (streamed(ONE_CALL), answer(400, b'{"error":{"message":"no such role: tool"}}')),
        [*passed(*ONE_CALL), summary(1, ECHOED), error("no such role: tool")],
        ["user", "user assistant tool"],
        end_state=EndState.UPSTREAM_ERROR,
        tool_calls=1,
    ),
}


@asynccontextmanager
async def gateway_of(
    script: Transcript, tmp_path: Path, *words: str, hung_up: asyncio.Event | None = None
) -> AsyncIterator[tuple[Served, ScriptedUpstream]]:
    """A gateway whose route `m` has this model, and tools that are started already."""
    async with scripted_upstream(rounds_script(*script.rounds, then=script.then, hung_up=hung_up)) as upstream:
        config = one_route(upstream.url, ONCE, "health: none", *script.settings)
        async with served(with_quick_tools(config, *words, timeout="300ms"), tmp_path) as gateway:
            yield gateway, upstream


def without_durations(told: list[str]) -> list[str]:
    return [re.sub(r'"duration_ms":[0-9.]+', '"duration_ms":0', line) for line in told]


def asks(upstream: ScriptedUpstream) -> list[str]:
    bodies = [json.loads(request.body) for request in upstream.requests]
    return [" ".join(message["role"] for message in body["messages"]) for body in bodies]


async def over_http(gateway: Served, script: Transcript) -> list[str]:
    got = await ask(gateway.port, post(PATH, stage(**script.request)))
    assert (got.status, got.whole) == (200, True)
    assert (got.headers["x-penstock-route"], got.headers["x-penstock-attempts"]) == ("m", "1")
    return lines(got.body)


async def over_a_websocket(gateway: Served, script: Transcript) -> list[str]:
    frames: list[str] = []
    async with websockets.connect(gateway.ws_url + PATH) as socket, asyncio.timeout(5):
        await socket.send(json.dumps(stage(**script.request)))
        while not frames or json.loads(frames[-1])["event"] not in ("done", "cancel", "error"):
            frames.append(str(await socket.recv()))
    return framed(frames)


@pytest.mark.parametrize("case", TRANSCRIPTS)
@pytest.mark.parametrize("over", [over_http, over_a_websocket])
async def test_transcript(case: str, over: Any, tmp_path: Path) -> None:
    script = TRANSCRIPTS[case]
    async with gateway_of(script, tmp_path) as (gateway, upstream):
        told = await over(gateway, script)
        assert without_durations(told) == script.told
        assert asks(upstream) == script.asks
        record = await gateway.record()
    assert (record.status, record.end_state) == (200, script.end_state)
    assert (record.transport, record.path) == ("ws" if over is over_a_websocket else "sse", PATH)
    assert (record.rounds, record.tool_calls) == (len(script.asks) - ("synthesis" in case), script.tool_calls)
    assert (record.attempts, len(record.attempted)) == (len(script.asks), len(script.asks))
    assert record.bytes_out > len("".join(told)) / 2


async def test_the_tools_are_offered_until_the_synthesis_which_has_the_second_numbers(tmp_path: Path) -> None:
    script = TRANSCRIPTS["synthesis"]
    numbers: dict[str, object] = {"max_tokens": [10, 20], "temperature": [0, 1.5]}
    async with gateway_of(script, tmp_path) as (gateway, upstream):
        await ask(gateway.port, post(PATH, stage(synthesis=True, **numbers), "Authorization: Bearer canary"))
        bodies = [json.loads(request.body) for request in upstream.requests]
    offered = [[tool["function"]["name"] for tool in body.get("tools", [])] for body in bodies]
    assert offered == [["echo", "fail", "hold"]] * 2 + [[]]
    assert [(body["max_tokens"], body["temperature"]) for body in bodies] == [(10, 0), (10, 0), (20, 1.5)]
    assert {request.target for request in upstream.requests} == {"/v1/chat/completions"}
    assert b"canary" not in b"".join(request.head for request in upstream.requests)


async def test_the_record_has_the_sums_of_all_rounds(tmp_path: Path) -> None:
    counted = [piece(number, usage=USAGE) for number in range(2)]
    script = Transcript((streamed([*ONE_CALL, counted[0]]), streamed([*LAST, counted[1]])), [], [])
    async with gateway_of(script, tmp_path) as (gateway, _):
        await ask(gateway.port, post(PATH, stage()))
        record = await gateway.record()
    assert (record.rounds, record.tool_calls) == (2, 1)
    assert (record.tokens_in, record.tokens_out, record.tokens_estimated) == (20, 4, False)
    assert record.events == len(ONE_CALL) + len(LAST) + 2  # the model's, with [DONE]
    assert record.last_event_ms is None
    assert record.ttft_ms is not None


# ---- in one piece ----


def completion(data: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])
    return body


async def test_a_completion_has_the_last_round_the_summaries_and_the_synthesis(tmp_path: Path) -> None:
    rounds = (whole(None, ECHO, usage=USAGE), whole("Hello it is.", usage=USAGE), whole("In prose."))
    async with gateway_of(Transcript(rounds, [], []), tmp_path) as (gateway, upstream):
        got = await ask(gateway.port, post(WHOLE_PATH, stage(synthesis=True)))
        record = await gateway.record()
        assert [json.loads(request.body)["stream"] for request in upstream.requests] == [False] * 3
    told = json.loads(without_durations([got.body.decode()])[0])
    assert (got.status, got.headers["content-type"]) == (200, "application/json")
    assert list(told) == ["stage_id", "chat_completion", "tool_summary", "tool_completion"]
    assert told["chat_completion"] == completion(rounds[1])
    assert told["tool_summary"] == [{"round": 1, "calls": [json.loads(ECHOED)]}]
    assert told["tool_completion"] == completion(rounds[2])
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.COMPLETED, 2, 1)
    assert (record.tokens_in, record.tokens_out, record.attempts) == (20, 4, 3)


@pytest.mark.parametrize("settings", [(TOOLS,), ()], ids=["tools that are not called", "no tools"])
async def test_a_completion_without_calls_has_no_summaries(settings: tuple[str, ...], tmp_path: Path) -> None:
    rounds = (whole("Hi."),)
    async with gateway_of(Transcript(rounds, [], [], settings=settings), tmp_path) as (gateway, _):
        got = await ask(gateway.port, post(WHOLE_PATH, stage()))
    expected: dict[str, Any] = {
        "stage_id": "s",
        "chat_completion": completion(rounds[0]),
        "tool_summary": [],
        "tool_completion": None,
    }
    assert json.loads(got.body) == expected


async def test_an_answer_of_a_megabyte_is_a_completion_too(tmp_path: Path) -> None:
    rounds = (whole("x" * 1_000_000),)
    async with gateway_of(Transcript(rounds, [], []), tmp_path) as (gateway, _):
        got = await ask(gateway.port, post(WHOLE_PATH, stage()))
    assert json.loads(got.body)["chat_completion"] == completion(rounds[0])


REFUSED = answer(429, b'{"error":{"message":"slow down"}}', b"Retry-After: 7")
CUT_WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"{")


@pytest.mark.parametrize("path", [PATH, WHOLE_PATH])
async def test_a_refusal_of_the_first_round_has_its_status(path: str, tmp_path: Path) -> None:
    async with gateway_of(Transcript((REFUSED,), [], []), tmp_path) as (gateway, _):
        got = await ask(gateway.port, post(path, stage()))
        record = await gateway.record()
    assert (got.status, json.loads(got.body)) == (429, {"detail": "slow down"})
    assert (got.headers["retry-after"], got.headers["x-penstock-source"]) == ("7", "upstream")
    assert (record.end_state, record.rounds) == (EndState.UPSTREAM_REJECTED, 1)


@pytest.mark.parametrize(
    ("second", "status", "detail"),
    [
        (REFUSED, 429, "slow down"),
        (answer(200, b"oops"), 502, "The model server's answer is not a JSON object."),
        (CUT_WHOLE, 502, None),
    ],
    ids=["refused", "no json", "cut"],
)
async def test_a_completion_whose_second_round_fails_is_an_error(
    second: bytes, status: int, detail: str | None, tmp_path: Path
) -> None:
    async with gateway_of(Transcript((whole(None, ECHO), second), [], []), tmp_path) as (gateway, _):
        got = await ask(gateway.port, post(WHOLE_PATH, stage()))
        record = await gateway.record()
    assert got.status == status
    assert json.loads(got.body)["detail"] == detail or detail is None
    assert (record.rounds, record.tool_calls, record.attempts) == (2, 1, 2)


# ---- who leaves, and when ----

LEAVING_MS = 100


async def leaves_http(gateway: Served, gone: asyncio.Event) -> None:
    async with raw_client(gateway.port) as client:
        await client.send(post(PATH, stage()))
        await gone.wait()
        client.leave()


async def leaves_whole(gateway: Served, gone: asyncio.Event) -> None:
    async with raw_client(gateway.port) as client:
        await client.send(post(WHOLE_PATH, stage()))
        await gone.wait()
        client.leave(reset=True)


async def leaves_websocket(gateway: Served, gone: asyncio.Event) -> None:
    async with websockets.connect(gateway.ws_url + PATH, close_timeout=0.1) as socket:
        await socket.send(json.dumps(stage()))
        await gone.wait()


@pytest.mark.parametrize(
    ("leaves", "round"),
    [
        (leaves_http, streamed(calls(call("hold")))),
        (leaves_whole, whole(None, call("hold"))),
        (leaves_websocket, streamed(calls(call("hold")))),
    ],
)
async def test_a_client_that_leaves_during_a_tool_cancels_it(leaves: Any, round: bytes, tmp_path: Path) -> None:
    notes, gone = tmp_path / "notes", asyncio.Event()
    script = Transcript((round,), [], [], settings=("tools: [bench]",))
    async with scripted_upstream(rounds_script(*script.rounds, then="hang")) as upstream:
        config = with_quick_tools(one_route(upstream.url, *script.settings), f"notes={notes}")
        async with served(config, tmp_path) as gateway:
            client = asyncio.create_task(leaves(gateway, gone))
            await noted(notes, "hold")
            left = asyncio.get_running_loop().time()
            gone.set()
            await client
            record = await gateway.record()
            assert asyncio.get_running_loop().time() - left < LEAVING_MS / 1000
            await noted(notes, "cancelled")
            assert not gateway.gateway._relay.in_flight()
    assert (record.end_state, record.status) == (EndState.CLIENT_CLOSED, 499)
    assert (record.rounds, record.tool_calls) == (1, 1)


@pytest.mark.parametrize("second", [b"", OK_EVENTS + chunk(event(CUT[0]))], ids=["before its answer", "in its answer"])
async def test_a_client_that_leaves_in_the_second_round_closes_the_upstream(second: bytes, tmp_path: Path) -> None:
    hung_up = asyncio.Event()
    script = Transcript((streamed(ONE_CALL), second), [], [], then="hang")
    async with gateway_of(script, tmp_path, hung_up=hung_up) as (gateway, upstream), raw_client(gateway.port) as client:
        await client.send(post(PATH, stage()))
        await client.reader.readuntil(b'"It "' if second else b"tool_summary")
        async with asyncio.timeout(5):
            while len(upstream.requests) < 2:
                await asyncio.sleep(0.001)
        client.leave()
        async with asyncio.timeout(LEAVING_MS / 1000):
            await hung_up.wait()
        record = await gateway.record()
    assert (record.end_state, record.attempts, record.rounds) == (EndState.CLIENT_CLOSED, 2, 2)
    assert record.tokens_estimated
    assert (record.tokens_in or 0) > 5  # both rounds' prompts


async def test_a_cancel_ends_the_stage_in_the_middle_of_a_tool(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = Transcript((streamed(calls(call("hold"))),), [], [])
    async with gateway_of(script, tmp_path, f"notes={notes}") as (gateway, _):
        async with websockets.connect(gateway.ws_url + PATH) as socket:
            await socket.send(json.dumps(stage()))
            await noted(notes, "hold")
            await socket.send('{"type":"cancel"}')
            frames = [str(await socket.recv()) for _ in range(4)]
            await noted(notes, "cancelled")
            record = await gateway.record()
    assert framed(frames)[-1] == "cancel {}"
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.CLIENT_CLOSED, 1, 1)


# ---- beside other streams of one socket ----


async def test_a_mux_stream_has_the_same_events(tmp_path: Path) -> None:
    script = TRANSCRIPTS["one tool"]
    async with gateway_of(script, tmp_path) as (gateway, _), mux(gateway, PATH) as client:
        await client.start(path=PATH, body=stage())
        accepted, *frames = await client.ended()
        record = await gateway.record()
    assert accepted["type"] == "accepted"
    assert {frame["data"].pop("stage_id") for frame in frames} == {"s"}
    told = without_durations([f"{frame['type']} {_compact(frame['data'])}" for frame in frames])
    assert told[:-1] == script.told[:-1]
    assert frames[-1]["type"] == "done"
    assert (record.dialect, record.end_state, record.rounds, record.tool_calls) == ("mux", EndState.COMPLETED, 2, 1)


async def test_a_mux_stream_that_is_cancelled_in_the_middle_of_a_tool_stops_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = Transcript((streamed(calls(call("hold"))),), [], [])
    async with gateway_of(script, tmp_path, f"notes={notes}") as (gateway, _), mux(gateway, PATH) as client:
        await client.start(path=PATH, body=stage())
        await noted(notes, "hold")
        await client.say("cancel", rid="r1")
        assert (await client.ended())[-1]["type"] == "cancel"
        await noted(notes, "cancelled")
        record = await gateway.record()
    assert (record.end_state, record.rounds, record.tool_calls) == (EndState.CLIENT_CLOSED, 1, 1)


# ---- a gateway that stops ----


async def test_a_drain_waits_for_the_next_round(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    holding = Transcript((streamed(calls(call("hold"))), streamed(LAST)), [], [])
    async with gateway_of(holding, tmp_path, f"notes={notes}") as (gateway, _), raw_client(gateway.port) as client:
        await client.send(post(PATH, stage()))
        await noted(notes, "hold")  # for 300 ms
        draining = asyncio.create_task(gateway.gateway.drain())
        got = await client.answer()
        await draining
        record = await gateway.record()
    assert lines(got.body)[-1] == "done {}"
    assert (record.end_state, record.rounds) == (EndState.COMPLETED, 2)


async def test_a_drain_that_is_over_cancels_the_stage_and_its_tool(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with scripted_upstream(rounds_script(streamed(calls(call("hold"))))) as upstream:
        config = one_route(upstream.url, "tools: [bench]", server="port: 0\ndrain: 50ms")
        async with served(with_quick_tools(config, f"notes={notes}"), tmp_path) as gateway:
            async with raw_client(gateway.port) as client:
                await client.send(post(PATH, stage()))
                await noted(notes, "hold")
                draining = asyncio.create_task(gateway.gateway.drain())
                got = await client.answer()
                await draining
                await noted(notes, "cancelled")
                record = await gateway.record()
    assert lines(got.body)[-1] == "cancel {}"
    assert (record.status, record.end_state) == (200, EndState.DRAINED)


@pytest.mark.parametrize("path", [PATH, WHOLE_PATH])
@pytest.mark.parametrize("words", [["deaf"], []], ids=["while the tools are listed", "in the first round"])
async def test_a_drain_that_is_over_before_anything_was_said_has_a_status(
    path: str, words: list[str], tmp_path: Path
) -> None:
    async with scripted_upstream(rounds_script(b"", then="hang")) as upstream:
        config = one_route(upstream.url, "tools: [bench]", server="port: 0\ndrain: 50ms")
        async with served(with_quick_tools(config, *words), tmp_path) as gateway, raw_client(gateway.port) as client:
            await client.send(post(path, stage()))
            async with asyncio.timeout(5):
                while not gateway.gateway._relay.in_flight() or not (words or upstream.requests):
                    await asyncio.sleep(0.001)
            draining = asyncio.create_task(gateway.gateway.drain())
            got = await client.answer()
            await draining
    assert got.status == 503
    assert "shutting down" in json.loads(got.body)["detail"]


# ---- several processes ----


async def test_each_worker_has_tool_servers_of_its_own(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    routes = 'routes: {m: {replicas: ["demo://?tokens=1&first=1ms"], tools: [bench]}}\n'
    config = with_quick_tools(routes, f"notes={notes}")
    async with running_gateway(config, tmp_path, "--workers", "2") as gateway:
        port = int(gateway.url.rpartition(":")[2])
        request = post(PATH, stage(user_prompt="Use echo."))
        for _ in range(40):  # the kernel deals the connections out
            got = await ask(port, request)
            assert [line.partition(" ")[0] for line in lines(got.body)].count("tool_summary") == 1
            if notes.read_text().splitlines().count("start") == 2:
                break
    noted_lines = notes.read_text().splitlines()
    assert noted_lines.count("start") == 2
    assert noted_lines.count("end") == 2
