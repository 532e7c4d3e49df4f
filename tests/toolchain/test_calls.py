"""What the model said in one round, however its server spells it: the same calls come out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.toolchain.calls import Call, RoundReader, Said, chunk_of, said_in
from proxy.wire.sse import Event

WEATHER = '{"city":"Köln"}'


def read(*deltas: dict[str, Any], number: int = 1) -> Said:
    """What a round says whose chunks have these deltas."""
    reader = RoundReader()
    for delta in deltas:
        reader.see(event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
    reader.see(Event(b"", b"", b"[DONE]"))
    return reader.said(number)


def event(chunk: dict[str, Any]) -> Event:
    data = json.dumps(chunk, ensure_ascii=False).encode()
    return Event(data, data, data)


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": list(calls)}


def call(name: str | None = None, arguments: Any = None, **members: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**members, "function": function}


def told(said: Said) -> list[tuple[str, str, str]]:
    return [(each.id, each.name, each.text) for each in said.calls]


ONE = [("a", "weather", WEATHER)]
TWO = [("a", "weather", WEATHER), ("b", "time", "{}")]

SPELLINGS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "fragments, as OpenAI sends them": (
        [
            {"role": "assistant", "content": None},
            calling(call("weather", "", index=0, id="a", type="function")),
            *(calling(call(None, piece, index=0)) for piece in WEATHER),
        ],
        ONE,
    ),
    "whole, with an index": ([calling(call("weather", WEATHER, index=0, id="a"))], ONE),
    "whole, without an index": ([calling(call("weather", WEATHER, id="a"))], ONE),
    "whole, as an object": (
        [calling(call("weather", {"city": "Köln"}, index=0, id="a"))],
        [("a", "weather", '{"city": "Köln"}')],
    ),
    "without an id": ([calling(call("weather", WEATHER, index=0))], [("call_1_0", "weather", WEATHER)]),
    "with an empty id": ([calling(call("weather", WEATHER, index=0, id=""))], [("call_1_0", "weather", WEATHER)]),
    "without arguments": ([calling(call("time", index=0, id="a"))], [("a", "time", "")]),
    "two at once": ([calling(call("weather", WEATHER, index=0, id="a"), call("time", "{}", index=1, id="b"))], TWO),
    "two at once without indexes": ([calling(call("weather", WEATHER, id="a"), call("time", "{}", id="b"))], TWO),
    "two, their fragments mixed": (
        [
            calling(call("weather", "", index=0, id="a")),
            calling(call("time", "", index=1, id="b")),
            calling(call(None, WEATHER[:5], index=0), call(None, "{", index=1)),
            calling(call(None, "}", index=1), call(None, WEATHER[5:], index=0)),
        ],
        TWO,
    ),
    "two under the same index": (
        [calling(call("weather", WEATHER, index=0, id="a")), calling(call("time", "{}", index=0, id="b"))],
        TWO,
    ),
    "two of the same name under no index and no id": (
        [calling(call("time", "{}")), calling(call("time", "{}"))],
        [("call_1_0", "time", "{}"), ("call_1_1", "time", "{}")],
    ),
    "two under the same id": (
        [calling(call("weather", WEATHER, id="a"), call("time", "{}", id="a"))],
        [("a", "weather", WEATHER), ("call_1_1", "time", "{}")],
    ),
    "fragments without an index": (
        [calling(call("weather", WEATHER[:5], id="a")), calling(call(None, WEATHER[5:]))],
        ONE,
    ),
    "fragments that repeat the id": (
        [calling(call("weather", WEATHER[:5], id="a")), calling(call(None, WEATHER[5:], id="a"))],
        ONE,
    ),
    "fragments that repeat the name": (
        [calling(call("weather", WEATHER[:5], index=0, id="a")), calling(call("weather", WEATHER[5:], index=0))],
        ONE,
    ),
    "the name in fragments": (
        [calling(call("wea", "", index=0, id="a")), calling(call("ther", WEATHER, index=0))],
        ONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_calls_come_out_the_same_however_they_are_spelled(spelling: str) -> None:
    deltas, calls = SPELLINGS[spelling]
    assert told(read(*deltas)) == calls


def test_the_message_repeats_text_and_calls() -> None:
    said = read({"content": "Let me "}, {"content": "look."}, calling(call("weather", WEATHER, index=0, id="a")))
    assert said.message == {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": WEATHER}}],
    }


def test_thoughts_go_back_under_the_name_they_came_by() -> None:
    said = read({"reasoning_content": "hm"}, {"reasoning_content": "m"}, calling(call("time", "{}", index=0, id="a")))
    assert said.message["reasoning_content"] == "hmm"
    assert said.message["content"] is None


def test_a_servers_own_members_of_a_call_go_back() -> None:
    signed = {"google": {"thought_signature": "xyz"}}
    said = read(calling(call("time", "{}", index=0, id="a", extra_content=signed)))
    assert said.message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "time", "arguments": "{}"}, "extra_content": signed}
    ]


@pytest.mark.parametrize("text", ["", "  ", "{", "[1]", '"x"', "null"])
def test_arguments_that_are_no_object_are_repeated_as_an_empty_one(text: str) -> None:
    """A server parses what it is given again, and would refuse the whole conversation."""
    said = read(calling(call("time", text, index=0, id="a")))
    assert said.message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    ]
    assert said.calls[0].text == text


def test_text_alone_calls_nothing_and_is_not_kept() -> None:
    assert read({"content": 'I could use "tool_calls": [...]'}, {"content": "."}) == Said({})


@pytest.mark.parametrize("nothing", [None, [], {}, "x", [None], [{}]])
def test_calls_that_are_none_are_none(nothing: object) -> None:
    said = read({"tool_calls": nothing})
    assert [each.name for each in said.calls] in ([], [""])


def test_other_choices_than_the_first_do_not_count() -> None:
    reader = RoundReader()
    reader.see(event({"choices": [{"index": 1, "delta": calling(call("time", "{}", id="a"))}]}))
    assert reader.said(1).calls == ()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [("", {}), (" \n", {}), ('{"a":1}', {"a": 1}), ("[1]", None), ("{", None), ("null", None), ("\ud800", None)],
)
def test_arguments_are_an_object_or_nothing(text: str, arguments: dict[str, object] | None) -> None:
    assert Call("a", "time", text).arguments == arguments


def completion(**message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 3}}


def test_a_whole_answer_says_the_same_as_its_stream() -> None:
    calls = [call("weather", WEATHER, id="a", type="function"), call("time", "{}", type="function")]
    whole = completion(content="Hm.", tool_calls=calls)
    said = said_in(whole, 3)
    assert told(said) == [("a", "weather", WEATHER), ("call_3_1", "time", "{}")]
    reader = RoundReader()
    data = chunk_of(whole)
    reader.see(Event(data, data, data))
    assert reader.said(3) == said


def test_a_whole_answer_becomes_one_chunk() -> None:
    chunk = json.loads(chunk_of(completion(content="Hm.", tool_calls=[call("time", "{}", id="a")])))
    assert chunk == {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": {
                    "role": "assistant",
                    "content": "Hm.",
                    "tool_calls": [{"index": 0, "id": "a", "function": {"name": "time", "arguments": "{}"}}],
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"total_tokens": 3},
    }


@pytest.mark.parametrize("answer", [{}, {"choices": None}, {"choices": []}, {"choices": ["x"]}, {"choices": [{}]}])
def test_an_answer_without_a_choice_says_nothing(answer: dict[str, Any]) -> None:
    assert said_in(answer, 1).calls == ()
    assert "choices" in json.loads(chunk_of(answer))
