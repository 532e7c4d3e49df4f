import json
from dataclasses import replace

import pytest

from proxy.upstream.demo.calls import ToolCall, calls_for
from proxy.upstream.demo.conversation import Conversation, Tool, ToolResult

CITY = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool("get_weather", CITY), Tool("clock", {}), Tool("Read", {}), Tool("files.list", {}))


def called(prompt: str, **more: object) -> list[str]:
    return [call.name for call in calls_for(replace(Conversation(prompt, tools=TOOLS), **more))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("use get_weather for Åre", ["get_weather"]),
        ("Get weather for Åre", ["get_weather"]),
        ("what does the Clock say?", ["clock"]),
        ("clock and get_weather, please", ["get_weather", "clock"]),
        ("files.list", ["files.list"]),
        ("use the tools", ["get_weather", "clock", "Read", "files.list"]),
        ("Please call your tool.", ["get_weather"]),
        ("Read(it)", ["Read"]),
        ("read this, and the clockwork", []),
        ("the filesXlist and regets weather", []),
        ("I have a tool shed", []),
        ("", []),
    ],
)
def test_the_prompt_decides_what_is_called(prompt: str, names: list[str]) -> None:
    assert called(prompt) == names


def test_arguments_come_from_the_schema_and_the_prompt() -> None:
    (call,) = calls_for(Conversation('get_weather in "Åre"', tools=TOOLS))
    assert json.loads(call.arguments) == {"city": "Åre"}


def test_a_call_that_must_be_made_is_made_unasked() -> None:
    assert called("hello", must_call=True) == ["get_weather"]
    assert called("hello, clock", must_call=True) == ["clock"]


def test_one_call_at_a_time_where_the_request_says_so() -> None:
    assert called("use the tools", parallel_calls=False) == ["get_weather"]


def test_once_the_tools_have_answered_none_is_called_unless_one_must_be() -> None:
    results = (ToolResult("clock", "noon"),)
    assert called("use the clock", results=results) == []
    assert called("use the clock", results=results, must_call=True) == ["clock"]


def test_no_more_than_eight_calls() -> None:
    tools = tuple(Tool(f"tool_{n}", {}) for n in range(20))
    assert len(calls_for(Conversation("use the tools", tools=tools))) == 8


def test_fragments_joined_are_the_arguments() -> None:
    call = ToolCall("t", {"text": "ett två tre fyra fem 水车"})
    assert len(call.fragments) > 3
    assert json.loads("".join(call.fragments)) == call.values
