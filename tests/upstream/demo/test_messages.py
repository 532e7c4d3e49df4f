import json
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from proxy.upstream.demo.settings import DemoSettings
from tests.support.demo import checked, refused, strangers, streamed, timed, whole

PATH = "/v1/messages"
PROMPT = "Why do rivers meander?"
ASKED: dict[str, Any] = {"model": "river-7b", "max_tokens": 1000, "messages": [{"role": "user", "content": PROMPT}]}
TOOLS = [
    {"name": "get_weather", "input_schema": {"properties": {"city": {"type": "string"}}, "required": ["city"]}},
    {"name": "clock", "input_schema": {"type": "object"}},
]
TOOLED = {**ASKED, "tools": TOOLS, "messages": [{"role": "user", "content": 'get_weather in "Åre", and the clock'}]}
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def events(body: dict[str, Any], settings: DemoSettings | None = None) -> list[Any]:
    """The events as the official types, strictly; `ping`, which has none, left out."""
    data = [one for one in streamed(PATH, body, settings or DemoSettings()) if one != '{"type":"ping"}']
    found = [EVENT.validate_json(one, strict=True) for one in data]
    assert not any(strangers(event) for event in found)
    return found


def told(body: dict[str, Any]) -> Message:
    return checked(Message, json.dumps(whole(PATH, body)))


def said(body: dict[str, Any]) -> str:
    (block,) = told(body).content
    assert block.type == "text"
    return block.text


def test_a_text_is_told_from_message_start_to_message_stop() -> None:
    assert [json.loads(one)["type"] for one in streamed(PATH, ASKED, DemoSettings(tokens=2))] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_streamed_and_whole_say_the_same() -> None:
    deltas = [event.delta.text for event in events(ASKED) if event.type == "content_block_delta"]
    assert "".join(deltas) == said(ASKED)
    assert f"“{PROMPT}”" in said(ASKED)


def test_usage_counts_what_was_given_and_written() -> None:
    found = events(ASKED, DemoSettings(tokens=7))
    assert found[0].message.usage.input_tokens == 4 + 6
    assert found[-2].usage.output_tokens == 7
    assert (told(ASKED).usage.input_tokens, told(ASKED).stop_reason) == (10, "end_turn")


def test_max_tokens_ends_the_answer_and_says_so() -> None:
    found = events({**ASKED, "max_tokens": 3})
    assert sum(event.type == "content_block_delta" for event in found) == 3
    assert found[-2].delta.stop_reason == "max_tokens"


def test_tools_that_the_prompt_names_are_used_each_in_its_block() -> None:
    found = events(TOOLED)
    starts = [event.content_block for event in found if event.type == "content_block_start"]
    assert [(block.name, block.input) for block in starts] == [("get_weather", {}), ("clock", {})]
    parts = [
        "".join(e.delta.partial_json for e in found if e.type == "content_block_delta" and e.index == n) for n in (0, 1)
    ]
    assert [json.loads(part) for part in parts] == [{"city": "Åre"}, {}]
    assert found[-2].delta.stop_reason == "tool_use"


def test_whole_tool_uses_are_the_streamed_ones() -> None:
    message = told(TOOLED)
    assert message.stop_reason == "tool_use"
    assert [(b.name, b.input) for b in message.content if b.type == "tool_use"] == [
        ("get_weather", {"city": "Åre"}),
        ("clock", {}),
    ]


@pytest.mark.parametrize("content", ["snow", [{"type": "text", "text": "snow"}]])
def test_once_the_tools_have_answered_the_model_speaks_of_what_they_said(content: object) -> None:
    used = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {}}]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": content}
    aside = {"type": "text", "text": "<system-reminder>use the clock</system-reminder>"}
    messages = [*TOOLED["messages"], used, {"role": "user", "content": [result, aside]}]
    assert "`get_weather` answered: snow" in said({**TOOLED, "messages": messages})


def test_notes_between_the_users_words_are_not_what_the_user_said() -> None:
    note = "<system-reminder>get_weather!</system-reminder>"
    blocks = [{"type": "text", "text": text} for text in (note, PROMPT, note)]
    assert f"“{PROMPT}”" in said({**ASKED, "tools": TOOLS, "messages": [{"role": "user", "content": blocks}]})


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "none"}, []),
        ({"type": "any"}, ["get_weather", "clock"]),
        ({"type": "any", "disable_parallel_tool_use": True}, ["get_weather"]),
        ({"type": "tool", "name": "clock"}, ["clock"]),
    ],
)
def test_tool_choice_is_respected(choice: object, names: list[str]) -> None:
    blocks = told({**TOOLED, "tool_choice": choice}).content
    assert [block.name for block in blocks if block.type == "tool_use"] == names


def test_a_stop_sequence_ends_the_text() -> None:
    assert "rivers" not in said({**ASKED, "stop_sequences": ["rivers"]})


def test_a_tools_result_of_any_shape_is_taken() -> None:
    blocks = [{"type": "tool_result", "tool_use_id": "t", "content": content} for content in (None, {"a": 1}, ["x"])]
    blocks += [{"type": "image", "source": {}}, {"type": "thinking", "thinking": "…"}]
    assert "answered: nothing" in said({**ASKED, "messages": [{"role": "user", "content": blocks}]})


def test_tokens_are_counted_as_usage_counts_them() -> None:
    body = {**TOOLED, "system": [{"type": "text", "text": "Be brief."}]}
    counted = checked(MessageTokensCount, json.dumps(whole(f"{PATH}/count_tokens", body)))
    assert counted.input_tokens == told(body).usage.input_tokens


def test_deltas_come_at_their_pace() -> None:
    found = timed(PATH, ASKED, DemoSettings(tokens=3, interval_s=0.5, first_s=2.0))
    assert [delay_s for delay_s, _ in found if delay_s] == [2.0, 0.5, 0.5]


@pytest.mark.parametrize("wrong", [{"max_tokens": None}, {"messages": []}, {"tool_choice": {"type": "any"}}])
def test_a_wrong_member_is_refused_in_anthropics_words(wrong: dict[str, Any]) -> None:
    status, error = refused(PATH, {**ASKED, **wrong})
    assert (status, error["type"]) == (400, "invalid_request_error")
