"""Several rounds as one chat completion: one id, one end, the sum of the usage, and nothing of the calls."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.errors import GatewayError, UpstreamTruncated
from proxy.streams.stream import Stream
from proxy.toolchain.chat_sink import ChatSink
from proxy.wire.sse import Event, encode
from tests.support.memory_line import Heard
from tests.support.tool_rounds import call, calls, finished, piece, said, texts

DONE = b"[DONE]"


def events(chunks: list[bytes]) -> list[Event]:
    return [Event(encode(data), encode(data), data) for data in chunks]


class Rounds:
    """A sink that is told round after round; `ends` are how the rounds ended."""

    def __init__(self, *, include_usage: bool = False) -> None:
        self.left = 0
        self.sink = ChatSink(include_usage=include_usage, on_cancelled=self.leave)
        self.heard = Heard()
        self.ends: list[GatewayError | None] = []
        self.seen: list[bytes] = []

    def leave(self) -> None:
        self.left += 1

    def listen(self) -> None:
        self.sink.stream.attach(self.heard)

    def give(self, *rounds: list[bytes], one_by_one: bool = False) -> None:
        for chunks in rounds:
            inner = self.follow()
            given = events([*chunks, DONE])
            for batch in [[event] for event in given] if one_by_one else [given]:
                inner.publish(batch)
            inner.end()

    def follow(self) -> Stream:
        inner = Stream()
        self.sink.follow(inner, "chat_completion_chunk", self.ends.append, lambda event: self.seen.append(event.data))
        return inner

    @property
    def data(self) -> list[bytes]:
        return [event.data for batch in self.heard.batches for event in batch]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(data) for data in self.data if data != DONE]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for chunk in self.chunks for choice in chunk["choices"])

    @property
    def finishes(self) -> list[str]:
        reasons = [choice["finish_reason"] for chunk in self.chunks for choice in chunk["choices"]]
        return [reason for reason in reasons if reason]


THINKING = [
    said(0, role="assistant", content=""),
    said(0, content="Let me "),
    said(0, content="look. "),
    *calls(call("echo"))[1:],
]


async def test_one_round_of_text_is_passed_byte_for_byte() -> None:
    rounds = Rounds()
    rounds.listen()
    chunks = texts("Good ", 'day, "you".')
    rounds.give(chunks, one_by_one=True)
    rounds.sink.done()
    assert [json.loads(data) for data in rounds.data[:-1]] == [json.loads(data) for data in chunks]
    assert rounds.data[1:3] == chunks[1:3]
    assert rounds.data[-1] == DONE
    assert rounds.heard.wire.endswith(b"data: [DONE]\n\n")
    assert rounds.heard.ends == [None]
    assert rounds.ends == [None]


@pytest.mark.parametrize("one_by_one", [True, False])
async def test_several_rounds_are_one_answer(one_by_one: bool) -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give(THINKING, calls(call("echo"), number=1), texts("It is ", "noon.", number=2), one_by_one=one_by_one)
    rounds.sink.done()
    assert rounds.text == "Let me look. It is noon."
    assert {chunk["id"] for chunk in rounds.chunks} == {"chatcmpl-0"}
    assert rounds.finishes == ["stop"]
    assert [chunk["choices"][0]["delta"].get("role") for chunk in rounds.chunks].count("assistant") == 1
    assert b"tool_calls" not in b"".join(rounds.data)
    assert rounds.data.count(DONE) == 1
    assert rounds.data[-1] == DONE
    assert rounds.ends == [None] * 3
    assert rounds.seen.count(DONE) == 3


async def test_the_loop_sees_what_the_client_does_not() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give(THINKING)
    assert rounds.seen == [*THINKING, DONE]


async def test_text_and_calls_in_one_chunk_are_parted() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give([said(0, role="assistant", content="Hm.", tool_calls=[call("echo")]), finished("tool_calls")])
    assert rounds.text == "Hm."
    assert rounds.finishes == []
    assert "tool_calls" not in rounds.chunks[0]["choices"][0]["delta"]


async def test_a_first_round_of_calls_alone_tells_the_role() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give(calls(call("echo")), texts("noon", number=1))
    rounds.sink.done()
    assert rounds.chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert rounds.text == "noon"


async def test_an_id_within_a_text_stays() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give(texts("a"), [*texts('the id is "chatcmpl-1"', "!", number=1)])
    assert rounds.text == 'athe id is "chatcmpl-1"!'


async def test_rounds_without_ids_are_passed_too() -> None:
    rounds = Rounds()
    rounds.listen()
    nameless = [
        b'{"choices":[{"index":0,"delta":{"content":""}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"x"}}]}',
    ]
    rounds.give(texts("a"), nameless * 2)
    assert rounds.text == "axx"


async def test_usage_is_summed_when_it_was_asked_for() -> None:
    rounds = Rounds(include_usage=True)
    rounds.listen()
    first = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
    second = {"prompt_tokens": 20, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
    rounds.give([*calls(call("echo")), piece(0, usage=first)], [*texts("noon", number=1), piece(1, usage=second)])
    rounds.sink.done()
    usages = [chunk["usage"] for chunk in rounds.chunks if chunk.get("usage")]
    assert usages == [{"prompt_tokens": 30, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3}}]
    assert rounds.chunks[-1] == {
        "id": "chatcmpl-0",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "big",
        "choices": [],
        "usage": usages[0],
    }


async def test_usage_that_was_not_asked_for_is_left_out() -> None:
    rounds = Rounds()
    rounds.listen()
    stop = {"index": 0, "delta": {}, "finish_reason": "stop"}
    rounds.give([*texts("a")[:-1], piece(0, stop, usage={"prompt_tokens": 1}), piece(0, usage={"prompt_tokens": 1})])
    rounds.sink.done()
    assert not any(chunk.get("usage") for chunk in rounds.chunks)
    assert rounds.finishes == ["stop"]


async def test_where_the_model_would_have_gone_on_it_finishes_with_length() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give(THINKING)
    rounds.sink.done()
    assert rounds.finishes == ["length"]
    assert rounds.chunks[-1]["id"] == "chatcmpl-0"


async def test_an_error_ends_it_without_done() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.give(THINKING)
    error = UpstreamTruncated("the connection was lost")
    rounds.sink.stop_for(error)
    rounds.sink.done()
    assert rounds.heard.ends == [error]
    assert DONE not in rounds.data


async def test_an_error_event_ends_it_and_tells_the_loop() -> None:
    rounds = Rounds()
    rounds.listen()
    inner = rounds.follow()
    inner.publish(events([*texts("a")[:-1], b'{"error":{"message":"out of memory"}}', said(0, content="no")]))
    (told,) = rounds.ends
    assert told is not None
    assert told.message == "out of memory"
    assert rounds.heard.ends == [told]
    assert rounds.text == "a"
    inner.end()
    assert len(rounds.ends) == 1


async def test_a_listener_that_leaves_cancels_the_round() -> None:
    rounds = Rounds()
    rounds.listen()
    inner = rounds.follow()
    rounds.sink.stream.cancel()
    assert rounds.sink.over
    assert inner.ended
    assert rounds.left == 1
    later = Stream()
    rounds.sink.follow(later, "", rounds.ends.append)
    assert later.ended
    assert rounds.ends == []


async def test_a_drain_interrupts_the_round() -> None:
    rounds = Rounds()
    rounds.listen()
    rounds.follow()
    error = GatewayError("The gateway is shutting down.", code="draining")
    rounds.sink.stream.interrupt(error)
    assert rounds.heard.ends == [error]


class Source:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def interrupt(self, error: GatewayError) -> None:
        self.told.append("interrupt")

    def close(self) -> None:
        self.told.append("close")


async def test_a_full_listener_holds_the_round_back() -> None:
    rounds = Rounds()
    rounds.heard.full = True
    rounds.listen()
    inner, source = Stream(), Source()
    inner.flow_from(source)
    rounds.sink.follow(inner, "", rounds.ends.append)
    inner.publish(events(texts("a")))
    assert source.told == ["pause"]
    rounds.sink.stream.drained()
    assert source.told == ["pause", "resume"]
    rounds.sink.stream.cancel()
    assert source.told == ["pause", "resume", "close"]
    await asyncio.sleep(0)
