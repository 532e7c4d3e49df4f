"""The toolchain for an answer in one piece: a scripted model, real tool servers."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from proxy.errors import GatewayError, UpstreamError, UpstreamInvalid, UpstreamTimeout
from proxy.toolchain.collected import ToolchainCollection
from proxy.toolchain.rounds import RoundRefused
from proxy.toolchain.run import Request
from proxy.toolchain.servers import ToolServers
from tests.support.tool_rounds import BASE, Model, call, model, streamed, texts, whole
from tests.support.tool_servers import noted, quick
from tests.support.upstream import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.config.model import Tool

WHOLE_BASE = {**BASE, "stream": False}
ECHO = '{"text":"hello"}'


@asynccontextmanager
async def collection(
    tmp_path: Path,
    *answers: bytes,
    tools: Tool | None = None,
    synthesis: dict[str, Any] | None = None,
    max_rounds: int = 8,
    total_s: float | None = None,
) -> AsyncIterator[tuple[ToolchainCollection, Model]]:
    servers = ToolServers({"bench": tools or quick()})
    try:
        async with model(tmp_path, *answers) as upstream:
            request = Request(WHOLE_BASE, synthesis, max_rounds=max_rounds, parallel=8, total_s=total_s)
            yield (
                ToolchainCollection(request, await servers.offer(["bench"]), servers, upstream.exchanges),
                upstream,
            )
            upstream.nothing_is_left()
    finally:
        await servers.close()


def content(completion: bytes | None) -> str:
    text: str = json.loads(completion or b"")["choices"][0]["message"]["content"]
    return text


async def test_rounds_are_collected_to_the_last_answer(tmp_path: Path) -> None:
    rounds = (whole(None, call("echo", ECHO, id="a"), call("fail", "{}", index=1, id="b")), whole("Hello it is."))
    async with collection(tmp_path, *rounds) as (there, upstream):
        found = await there.collect()
        bodies = upstream.bodies
    assert content(found.completion) == "Hello it is."
    assert len(found.completions) == 2
    (summary,) = found.summaries
    assert summary["round"] == 1
    told: Any = summary["calls"]
    assert [(each["id"], each["result"], each["is_error"]) for each in told] == [("a", "hello", False), ("b", "", True)]
    assert (found.synthesis, found.cut) == (None, False)
    assert [body["stream"] for body in bodies] == [False, False]
    assert [message["role"] for message in bodies[1]["messages"]] == ["user", "assistant", "tool", "tool"]
    assert (there.rounds, there.tool_calls) == (2, 2)


async def test_an_answer_without_calls_is_the_only_one(tmp_path: Path) -> None:
    async with collection(tmp_path, whole("Hi.")) as (there, _):
        found = await there.collect()
    assert content(found.completion) == "Hi."
    assert found.summaries == []


async def test_the_synthesis_stands_apart(tmp_path: Path) -> None:
    rounds = (whole(None, call("echo", ECHO)), whole("short"), whole("In prose."))
    async with collection(tmp_path, *rounds, synthesis={"max_tokens": 7}) as (there, upstream):
        found = await there.collect()
        assert upstream.bodies[2]["max_tokens"] == 7
    assert (content(found.completion), content(found.synthesis)) == ("short", "In prose.")


async def test_max_rounds_is_told(tmp_path: Path) -> None:
    rounds = [whole(None, call("echo", ECHO)) for _ in range(3)]
    async with collection(tmp_path, *rounds, max_rounds=2) as (there, _):
        found = await there.collect()
    assert found.cut
    assert len(found.summaries) == len(found.completions) == 2


@pytest.mark.parametrize(
    ("answers", "kind", "message"),
    [
        ([], UpstreamError, "the connection was closed before an answer came"),
        ([answer(200, b"oops")], UpstreamInvalid, "not a JSON object"),
        ([answer(200, b'{"error":{"message":"out of memory"}}')], UpstreamError, "out of memory"),
        ([streamed(texts("hi"))], UpstreamInvalid, "an event stream that was not asked for"),
        ([whole(None, call("echo", ECHO))], UpstreamError, "the connection was closed before an answer came"),
    ],
    ids=["nothing", "no json", "error under 200", "events", "cut in the second round"],
)
async def test_a_failure_of_any_round_is_raised(
    answers: list[bytes], kind: type[GatewayError], message: str, tmp_path: Path
) -> None:
    async with collection(tmp_path, *answers) as (there, _):
        with pytest.raises(kind, match=message):
            await there.collect()


async def test_a_refusal_of_any_round_is_raised_with_its_answer(tmp_path: Path) -> None:
    refused = answer(400, b'{"error":{"message":"no such role: tool"}}')
    async with collection(tmp_path, whole(None, call("echo", ECHO)), refused) as (there, _):
        with pytest.raises(RoundRefused) as raised:
            await there.collect()
        assert raised.value.answer.status == 400
        there._exchanges.close(raised.value.answer)


async def test_the_request_has_a_time_for_everything(tmp_path: Path) -> None:
    async with collection(tmp_path, whole(None, call("hold")), total_s=0.2) as (there, _):
        with pytest.raises(UpstreamTimeout, match=r"timeouts\.total"):
            await there.collect()


async def test_a_client_that_leaves_cancels_the_calls(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with collection(tmp_path, whole(None, call("hold")), tools=quick(f"notes={notes}")) as (there, _):
        collecting = asyncio.create_task(there.collect())
        await noted(notes, "hold")
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        await noted(notes, "cancelled")
