"""A streamed request's toolchain: a scripted model, real tool servers, and what the client's side hears."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from proxy.errors import GatewayError, UpstreamError, UpstreamInvalid, UpstreamTimeout
from proxy.streams.stages import StageStream
from proxy.toolchain.rounds import RoundRefused
from proxy.toolchain.run import Request, ToolchainRun
from proxy.toolchain.servers import ToolServers
from tests.support.memory_line import Heard
from tests.support.tool_rounds import BASE, Model, call, calls, finished, model, said, streamed, texts, whole
from tests.support.tool_servers import noted, official, quick
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, answer, chunk, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.config.model import Tool

DONE_EVENT = {"stage_id": "s"}
ECHO = '{"text":"hello"}'


@dataclass(slots=True)
class Stage:
    """A run and what is heard of it."""

    run: ToolchainRun
    stage: StageStream
    heard: Heard
    model: Model

    async def to_its_end(self) -> list[tuple[str, dict[str, Any]]]:
        """All events, as kind and data, once the last one has come."""
        await self.run.begin()
        self.stage.stream.attach(self.heard)
        async with asyncio.timeout(20):
            await self.heard.over.wait()
        return self.events()

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        events = [event for batch in self.heard.batches for event in batch]
        assert [event.id for event in events] == [b"s-chunk-%d" % number for number in range(len(events))]
        return [(event.type.decode(), json.loads(event.data)) for event in events]


@asynccontextmanager
async def stage(
    tmp_path: Path,
    *answers: bytes,
    tools: Tool | None = None,
    wanted: tuple[str, ...] = ("bench",),
    then: str = "close",
    synthesis: dict[str, Any] | None = None,
    max_rounds: int = 8,
    total_s: float | None = None,
) -> AsyncIterator[Stage]:
    """A run of these rounds with this tool server; in the end nothing of it may be left."""
    servers = ToolServers({"bench": tools or quick()})
    try:
        async with model(tmp_path, *answers, then=then) as upstream:
            request = Request(BASE, synthesis, max_rounds=max_rounds, parallel=8, total_s=total_s)
            sink = StageStream("s")
            run = ToolchainRun(request, await servers.offer(wanted), servers, upstream.exchanges, sink)
            try:
                yield Stage(run, sink, Heard(), upstream)
            finally:
                await run.close()
            upstream.nothing_is_left()
    finally:
        await servers.close()


def kinds(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """The events' kinds, each run of chunks as one."""
    found: list[str] = []
    for kind, _ in events:
        if not (found and found[-1] == kind and kind.endswith("_chunk")):
            found.append(kind)
    return found


def summary(events: list[tuple[str, dict[str, Any]]], number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = [data["tool_summary"] for kind, data in events if kind == "tool_summary"][number]
    for each in found["calls"]:
        assert each.pop("duration_ms") >= 0
    return found


async def test_an_answer_without_calls_is_passed_on_as_it_is(tmp_path: Path) -> None:
    rounds = texts("Good ", "day.")
    async with stage(tmp_path, streamed(rounds)) as there:
        events = await there.to_its_end()
        (body,) = there.model.bodies
    assert events == [
        *(("chat_completion_chunk", {"stage_id": "s", "chunk": json.loads(each)}) for each in rounds),
        ("done", DONE_EVENT),
    ]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["echo", "fail", "hold", "refuse", "big"]
    assert (there.run.rounds, there.run.tool_calls) == (1, 0)


async def test_without_tools_it_is_a_plain_chat(tmp_path: Path) -> None:
    async with stage(tmp_path, streamed(texts("hi")), wanted=()) as there:
        events = await there.to_its_end()
        assert "tools" not in there.model.bodies[0]
    assert kinds(events) == ["chat_completion_chunk", "done"]


async def test_a_call_is_run_and_its_result_goes_into_the_next_round(tmp_path: Path) -> None:
    first = calls(call("echo", ECHO, id="a"))
    second = texts("It said hello.")
    async with stage(tmp_path, streamed(first), streamed(second)) as there:
        events = await there.to_its_end()
        bodies = there.model.bodies
    assert kinds(events) == ["chat_completion_chunk", "tool_summary", "chat_completion_chunk", "done"]
    chunks = [data["chunk"] for kind, data in events if kind == "chat_completion_chunk"]
    assert chunks == [json.loads(each) for each in [*first, *second]]
    assert summary(events) == {
        "round": 1,
        "calls": [{"id": "a", "name": "echo", "arguments": {"text": "hello"}, "result": "hello", "is_error": False}],
    }
    assert bodies[1]["messages"] == [
        *BASE["messages"],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "echo", "arguments": ECHO}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "hello"},
    ]
    assert bodies[1]["tools"] == bodies[0]["tools"]
    assert (there.run.rounds, there.run.tool_calls) == (2, 1)


FRAGMENTS = [
    said(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "echo", "arguments": ""}}]),
    *(said(tool_calls=[{"index": 0, "function": {"arguments": letter}}]) for letter in ECHO),
    finished("tool_calls"),
]
WHOLE = [said(tool_calls=[{"id": "a", "function": {"name": "echo", "arguments": {"text": "hello"}}}]), finished("stop")]


@pytest.mark.parametrize("spelling", [FRAGMENTS, WHOLE], ids=["fragments", "whole"])
async def test_a_call_is_run_however_it_is_spelled(spelling: list[bytes], tmp_path: Path) -> None:
    async with stage(tmp_path, streamed(spelling), streamed(texts("ok"))) as there:
        events = await there.to_its_end()
    assert summary(events)["calls"][0]["result"] == "hello"


async def test_several_calls_of_two_rounds_are_told_in_their_order(tmp_path: Path) -> None:
    three = calls(*(call("echo", json.dumps({"text": str(at)}), index=at) for at in range(3)))
    one = calls(call("fail", '{"text":"no"}'), number=1)
    async with stage(tmp_path, streamed(three), streamed(one), streamed(texts("ok", number=2))) as there:
        events = await there.to_its_end()
        messages = there.model.bodies[2]["messages"]
    assert [each["result"] for each in summary(events, 0)["calls"]] == ["0", "1", "2"]
    assert summary(events, 1)["round"] == 2
    assert [message["role"] for message in messages] == ["user", "assistant", *["tool"] * 3, "assistant", "tool"]
    assert messages[-1]["content"] == "Error: no"
    assert there.run.tool_calls == 4


@pytest.mark.parametrize(
    ("made", "result"),
    [
        (call("sing"), 'there is no tool "sing"; there are: echo, fail, hold, refuse, big'),
        (call("echo", "{half"), "the arguments are not a JSON object: {half"),
        (call("fail", '{"text":"no"}'), "no"),
        (call("refuse", '{"text":"no"}'), "refused: no"),
        (call("hold"), 'tool server "bench" did not answer within 0.2 s'),
    ],
    ids=["made-up name", "no arguments", "failing", "refusing", "hanging"],
)
async def test_what_fails_is_a_result_and_not_the_end(made: dict[str, Any], result: str, tmp_path: Path) -> None:
    rounds = (streamed(calls(made)), streamed(texts("Sorry.")))
    async with stage(tmp_path, *rounds, tools=quick(timeout="200ms")) as there:
        events = await there.to_its_end()
        told = there.model.bodies[1]["messages"][-1]["content"]
    assert kinds(events)[-2:] == ["chat_completion_chunk", "done"]
    (each,) = summary(events)["calls"]
    assert (each["result"], each["is_error"]) == (result, True)
    assert told == f"Error: {result}"


async def test_a_server_that_dies_is_a_result_and_works_again(tmp_path: Path) -> None:
    rounds = [streamed(calls(call("echo", ECHO), number=number)) for number in range(2)]
    async with stage(tmp_path, *rounds, streamed(texts("ok")), tools=quick(f"once={tmp_path / 'died'}")) as there:
        events = await there.to_its_end()
    first, second = summary(events, 0)["calls"][0], summary(events, 1)["calls"][0]
    assert first["is_error"]
    assert first["result"].startswith('tool server "bench": its program ended (exit code 9)')
    assert second["result"] == "hello"


async def test_a_result_of_ten_megabytes_is_cut(tmp_path: Path) -> None:
    big = calls(call("big", '{"characters":10000000}'))
    async with stage(tmp_path, streamed(big), streamed(texts("ok")), tools=official()) as there:
        events = await there.to_its_end()
        told = there.model.bodies[1]["messages"][-1]["content"]
    assert len(told) < 300_000
    assert told == summary(events)["calls"][0]["result"]
    assert told.endswith("of 10000000 characters]")


async def test_max_rounds_ends_it_after_the_last_tools(tmp_path: Path) -> None:
    rounds = [streamed(calls(call("echo", ECHO), number=number)) for number in range(5)]
    async with stage(tmp_path, *rounds, max_rounds=3) as there:
        events = await there.to_its_end()
        assert len(there.model.bodies) == 3
    assert kinds(events) == ["chat_completion_chunk", "tool_summary"] * 3 + ["done"]


async def test_the_synthesis_is_told_apart(tmp_path: Path) -> None:
    rounds = (calls(call("echo", ECHO)), texts("short", number=1), texts("In ", "prose.", number=2))
    async with stage(tmp_path, *map(streamed, rounds), synthesis={"temperature": 0.5}) as there:
        events = await there.to_its_end()
        body = there.model.bodies[2]
    assert kinds(events) == [
        *("chat_completion_chunk", "tool_summary", "chat_completion_chunk", "tool_completion_chunk", "done")
    ]
    told = [data["tool_results"] for kind, data in events if kind == "tool_completion_chunk"]
    assert told == [json.loads(each) for each in rounds[2]]
    assert body["temperature"] == 0.5
    assert "tools" not in body
    assert body["messages"][-1]["role"] == "tool"


async def test_an_answer_in_one_piece_is_one_chunk(tmp_path: Path) -> None:
    async with stage(tmp_path, whole(None, call("echo", ECHO)), whole("Hello it is.")) as there:
        events = await there.to_its_end()
    assert kinds(events) == ["chat_completion_chunk", "tool_summary", "chat_completion_chunk", "done"]
    assert events[0][1]["chunk"]["object"] == "chat.completion.chunk"
    assert events[2][1]["chunk"]["choices"][0]["delta"]["content"] == "Hello it is."


# ---- what goes wrong upstream ----


async def test_a_first_round_that_fails_is_the_callers(tmp_path: Path) -> None:
    async with stage(tmp_path) as there:
        with pytest.raises(UpstreamError):
            await there.run.begin()
    assert not there.heard.batches


async def test_a_first_round_that_says_nothing_usable_is_the_callers(tmp_path: Path) -> None:
    async with stage(tmp_path, answer(200, b"oops")) as there:
        with pytest.raises(UpstreamInvalid, match="neither an event stream nor a JSON object"):
            await there.run.begin()


async def test_a_first_round_that_is_refused_is_the_callers(tmp_path: Path) -> None:
    async with stage(tmp_path, answer(429, b'{"error":{"message":"slow down"}}')) as there:
        with pytest.raises(RoundRefused) as refused:
            await there.run.begin()
        assert refused.value.answer.status == 429
        assert refused.value.answer.body == b'{"error":{"message":"slow down"}}'
        there.run._exchanges.close(refused.value.answer)


CUT = OK_EVENTS + chunk(event(said(1, content="It ")))


LOST = "The connection was lost before the answer was whole. Send the request again."
OUT_OF_MEMORY = b'{"error":{"message":"out of memory"}}'


@pytest.mark.parametrize(
    ("second", "then", "error"),
    [
        (CUT, "reset", LOST),
        (OK_EVENTS, "close", f'Route "m": replica 0: {LOST[0].lower()}{LOST[1:]}'),
        (answer(400, b'{"error":{"message":"no such role: tool"}}'), "close", "No such role: tool"),
        (answer(500, b"oops"), "close", "The model server answered with status 500 to the tools' results."),
        (streamed([OUT_OF_MEMORY]), "close", "Out of memory"),
        (streamed([said(1, content="It "), OUT_OF_MEMORY]), "close", "Out of memory"),
        (answer(200, b"oops"), "close", "The model server answered with neither an event stream nor a JSON object."),
    ],
    ids=["cut", "cut before content", "refused", "failed", "error event", "late error event", "no json"],
)
async def test_a_later_round_that_fails_ends_the_stage_with_an_error(
    second: bytes, then: str, error: str, tmp_path: Path
) -> None:
    async with stage(tmp_path, streamed(calls(call("echo", ECHO))), second, then=then) as there:
        events = await there.to_its_end()
    assert "tool_summary" in kinds(events)
    assert [kind for kind, _ in events].count("error") == 1
    kind, data = events[-1]
    assert (kind, data["error"].lower()) == ("error", error.lower())


async def test_the_request_has_a_time_for_everything(tmp_path: Path) -> None:
    async with stage(tmp_path, streamed(calls(call("hold"))), total_s=0.3) as there:
        events = await there.to_its_end()
    assert events[-1][0] == "error"
    assert "timeouts.total" in events[-1][1]["error"]


async def test_a_first_round_that_takes_all_the_time_is_a_timeout(tmp_path: Path) -> None:
    async with stage(tmp_path, OK_EVENTS, then="hang", total_s=0.1) as there:
        with pytest.raises(UpstreamTimeout):
            await there.run.begin()
        async with asyncio.timeout(5):
            await there.model.hung_up.wait()


# ---- what goes wrong downstream ----


async def test_a_client_that_leaves_during_a_tool_cancels_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with stage(tmp_path, streamed(calls(call("hold"))), tools=quick(f"notes={notes}")) as there:
        await there.run.begin()
        there.stage.stream.attach(there.heard)
        await noted(notes, "hold")
        there.stage.stream.cancel()
        await there.run.close()
        await noted(notes, "cancelled")
    assert not there.heard.ends


async def test_a_run_that_is_stopped_has_let_go_of_the_upstream_at_once(tmp_path: Path) -> None:
    async with stage(tmp_path, streamed(calls(call("echo", ECHO))), CUT, then="hang") as there:
        await there.run.begin()
        there.stage.stream.attach(there.heard)
        async with asyncio.timeout(5):
            while "It " not in there.heard.wire.decode():
                await asyncio.sleep(0.001)
        there.run.stop()
        there.model.nothing_is_left()
        there.run.stop()
        await there.run.close()
    assert not there.heard.ends


async def test_a_run_that_is_stopped_before_its_first_word_was_passed_on_closes_it(tmp_path: Path) -> None:
    async with stage(tmp_path, CUT, then="hang") as there:
        await there.run.begin()
        there.run.stop()
        there.model.nothing_is_left()
        async with asyncio.timeout(5):
            await there.model.hung_up.wait()


async def test_a_client_that_leaves_during_a_round_closes_the_upstream(tmp_path: Path) -> None:
    async with stage(tmp_path, streamed(calls(call("echo", ECHO))), CUT, then="hang") as there:
        await there.run.begin()
        there.stage.stream.attach(there.heard)
        async with asyncio.timeout(5):
            while "It " not in there.heard.wire.decode():
                await asyncio.sleep(0.001)
            there.stage.stream.cancel()
            await there.run.close()
            await there.model.hung_up.wait()


async def test_a_run_that_nobody_listened_to_leaves_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path, streamed(texts("hi"))) as there:
        await there.run.begin()
        await there.run.close()


async def test_a_drain_during_a_tool_ends_the_stage_and_asks_nothing_more(tmp_path: Path) -> None:
    draining = GatewayError("The gateway is shutting down.", code="draining")
    async with stage(tmp_path, streamed(calls(call("hold"))), tools=quick(timeout="300ms")) as there:
        await there.run.begin()
        there.stage.stream.attach(there.heard)
        async with asyncio.timeout(5):
            while len(there.events()) < 3:
                await asyncio.sleep(0.001)
        there.stage.stream.interrupt(draining)
        await there.heard.over.wait()
        assert there.events()[-1] == ("cancel", DONE_EVENT)
        assert there.run._task is not None
        await there.run._task
        assert len(there.model.bodies) == 1


async def test_a_slow_reader_holds_the_model_back(tmp_path: Path) -> None:
    words = [f"word{number} " for number in range(400)]
    pieces = b"".join(chunk(event(said(content=word))) for word in words)
    ended = chunk(event(finished("stop")) + DONE) + LAST_CHUNK
    async with stage(tmp_path, OK_EVENTS + pieces + ended) as there:
        there.heard.full = True
        await there.run.begin()
        there.stage.stream.attach(there.heard)
        async with asyncio.timeout(10):
            while not there.heard.over.is_set():
                there.stage.stream.drained()
                await asyncio.sleep(0)
        told = [data["chunk"]["choices"][0]["delta"].get("content") for _, data in there.events()[:400]]
    assert told == words
