import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.upstream.demo.settings import DemoSettings
from tests.support.demo import checked, refused, streamed, timed, whole

PATH = "/v1/chat/completions"
PROMPT = "Why do rivers meander?"
ASKED: dict[str, Any] = {"model": "river-7b", "messages": [{"role": "user", "content": PROMPT}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLED: dict[str, Any] = {
    "messages": [{"role": "user", "content": 'get_weather in "Åre", and the clock'}],
    "tools": [WEATHER, CLOCK],
}


def chunks(data: list[str]) -> list[ChatCompletionChunk]:
    assert data[-1] == "[DONE]"
    return [checked(ChatCompletionChunk, one) for one in data[:-1]]


def test_a_stream_is_a_role_then_tokens_then_an_end() -> None:
    told = chunks(streamed(PATH, ASKED, DemoSettings(tokens=6)))
    deltas = [chunk.choices[0].delta for chunk in told]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [bool(delta.content) for delta in deltas] == [False, *[True] * 6, False]
    assert [chunk.choices[0].finish_reason for chunk in told] == [*[None] * 7, "stop"]


def test_every_chunk_of_a_stream_says_whose_it_is() -> None:
    told = chunks(streamed(PATH, ASKED))
    assert {(chunk.id, chunk.model, chunk.created, chunk.object) for chunk in told} == {
        ("chatcmpl-0123456789abcdef0123456789abcdef", "river-7b", 1_700_000_000, "chat.completion.chunk")
    }


def test_streamed_and_whole_say_the_same() -> None:
    told = checked(ChatCompletion, json.dumps(whole(PATH, ASKED)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks(streamed(PATH, ASKED)))
    assert told.choices[0].message.content == text
    assert PROMPT in text
    assert told.usage is not None
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens


def test_tokens_come_at_their_pace_and_the_end_with_the_last() -> None:
    told = timed(PATH, ASKED, DemoSettings(tokens=3, interval_s=0.5, first_s=2.0))
    assert [delay_s for delay_s, _ in told] == [2.0, 0.0, 0.5, 0.5, 0.0, 0.0]


def test_usage_comes_before_the_end_and_only_where_it_is_asked_for() -> None:
    told = chunks(streamed(PATH, {**ASKED, "stream_options": {"include_usage": True}}, DemoSettings(tokens=6)))
    assert told[-1].choices == []
    assert told[-1].usage is not None
    assert told[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in told[:-1])
    assert all(chunk.usage is None for chunk in chunks(streamed(PATH, ASKED)))


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_ends_the_answer_with_length(limit: str) -> None:
    told = chunks(streamed(PATH, {**ASKED, limit: 4}))
    assert sum(bool(chunk.choices[0].delta.content) for chunk in told) == 4
    assert told[-1].choices[0].finish_reason == "length"
    assert whole(PATH, {**ASKED, limit: 4})["choices"][0]["finish_reason"] == "length"


def test_several_choices_are_told_side_by_side_each_with_its_own_text_and_end() -> None:
    told = timed(PATH, {**ASKED, "n": 3}, DemoSettings(tokens=5, interval_s=0.5, first_s=1.0))
    found = chunks([data for _, data in told])
    texts = ["".join(c.choices[0].delta.content or "" for c in found if c.choices[0].index == n) for n in range(3)]
    assert len(set(texts)) == 3
    assert [c.choices[0].index for c in found if c.choices[0].finish_reason == "stop"] == [0, 1, 2]
    assert sum(delay_s for delay_s, _ in told) == 3.0
    assert len(whole(PATH, {**ASKED, "n": 3})["choices"]) == 3


def test_tools_that_the_prompt_names_are_called_in_parallel_by_fragments() -> None:
    told = chunks(streamed(PATH, TOOLED))
    deltas = [call for chunk in told for call in chunk.choices[0].delta.tool_calls or ()]
    names = {call.index: call.function.name for call in deltas if call.id and call.function}
    assert names == {0: "get_weather", 1: "clock"}
    arguments = ["".join(c.function.arguments or "" for c in deltas if c.index == n and c.function) for n in range(2)]
    assert [json.loads(one) for one in arguments] == [{"city": "Åre"}, {}]
    assert len({call.id for call in deltas if call.id}) == 2
    assert told[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in told)


def test_whole_tool_calls_are_the_streamed_ones() -> None:
    told = checked(ChatCompletion, json.dumps(whole(PATH, TOOLED))).choices[0]
    assert told.finish_reason == "tool_calls"
    assert told.message.content is None
    calls = [call for call in told.message.tool_calls or () if call.type == "function"]
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", '{"city":"Åre"}'),
        ("clock", "{}"),
    ]


def test_once_the_tools_have_answered_the_model_speaks_of_what_they_said() -> None:
    call = whole(PATH, TOOLED)["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": made["id"], "content": f"result {n}"}
        for n, made in enumerate(call["tool_calls"])
    ]
    told = whole(PATH, {**TOOLED, "messages": [*TOOLED["messages"], call, *results]})["choices"][0]
    assert told["finish_reason"] == "stop"
    assert "`get_weather` answered: result 0\n`clock` answered: result 1" in told["message"]["content"]


def test_a_later_question_is_not_answered_with_old_results() -> None:
    call = whole(PATH, TOOLED)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "snow"}
    again = {"role": "user", "content": "and what does the clock say?"}
    told = whole(PATH, {**TOOLED, "messages": [*TOOLED["messages"], call, result, again]})["choices"][0]["message"]
    assert [made["function"]["name"] for made in told["tool_calls"]] == ["clock"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", []),
        ("auto", ["get_weather", "clock"]),
        ("required", ["get_weather", "clock"]),
        ({"type": "function", "function": {"name": "clock"}}, ["clock"]),
    ],
)
def test_tool_choice_is_respected(choice: object, names: list[str]) -> None:
    message = whole(PATH, {**TOOLED, "tool_choice": choice})["choices"][0]["message"]
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == names


def test_a_required_call_is_made_unasked() -> None:
    message = whole(PATH, {**ASKED, "tools": [CLOCK], "tool_choice": "required"})["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "clock"


def test_a_response_format_is_kept() -> None:
    schema = {"properties": {"km": {"type": "integer"}}, "required": ["km"]}
    shape = {"type": "json_schema", "json_schema": {"name": "river", "schema": schema}}
    content = whole(PATH, {**ASKED, "response_format": shape})["choices"][0]["message"]["content"]
    assert json.loads(content) == {"km": 1}
    content = whole(PATH, {**ASKED, "response_format": {"type": "json_object"}})["choices"][0]["message"]["content"]
    assert list(json.loads(content)) == ["answer"]


def test_the_last_thing_the_user_said_is_answered_whatever_parts_it_comes_in() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [{"role": "user", "content": "old"}, {"role": "user", "content": parts}, {"role": "assistant"}]
    assert "“see”" in whole(PATH, {"messages": messages})["choices"][0]["message"]["content"]


def test_stop_ends_the_text() -> None:
    assert "rivers" not in whole(PATH, {**ASKED, "stop": "rivers"})["choices"][0]["message"]["content"]
    assert "do" not in whole(PATH, {**ASKED, "stop": ["rivers", "do"]})["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": "maybe"}, "stream"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_a_wrong_member_is_refused_by_its_name(wrong: dict[str, Any], param: str) -> None:
    status, error = refused(PATH, {**ASKED, **wrong})
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
