import json
from typing import Any

import pytest
from openai.types.responses import Response

from proxy.upstream.demo.settings import DemoSettings
from tests.support.demo import checked, refused, whole

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"model": "river-7b", "input": "Why do rivers meander?"}
TOOLS = [
    {
        "type": "function",
        "name": "get_weather",
        "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"type": "function", "name": "clock"},
]


def told(settings: DemoSettings | None = None, **body: Any) -> Response:
    found = whole(PATH, {**ASKED, **body}, settings or DemoSettings())
    return checked(Response, json.dumps(found))


def test_an_answer_is_the_official_response() -> None:
    response = told(DemoSettings(tokens=30))
    assert (response.status, response.model, response.created_at) == ("completed", "river-7b", 1_700_000_000)
    assert response.usage is not None
    assert (response.usage.output_tokens, response.usage.total_tokens) == (30, 30 + response.usage.input_tokens)


def test_the_prompt_is_quoted_as_text_or_as_items() -> None:
    items = [
        {"role": "user", "content": "an old question"},
        {"type": "reasoning", "summary": [], "id": "rs_1"},
        {"role": "user", "content": [{"type": "input_text", "text": "Why do rivers meander?"}]},
    ]
    assert "“Why do rivers meander?”" in told().output_text
    assert told(input=items).output_text == told().output_text


def test_a_limit_makes_it_incomplete() -> None:
    response = told(max_output_tokens=4)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_what_was_asked_is_repeated() -> None:
    response = told(instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, parallel_tool_calls=False)
    assert (response.instructions, response.temperature, response.metadata) == ("Be brief.", 0.5, {"a": "b"})
    assert response.parallel_tool_calls is False


def test_tools_that_the_prompt_names_are_called() -> None:
    response = told(input='get_weather in "Åre", and the clock', tools=TOOLS)
    calls = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
    assert calls == [("get_weather", '{"city":"Åre"}'), ("clock", "{}")]


def test_once_the_tools_have_answered_the_model_speaks_of_what_they_said() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
    response = told(input=[{"role": "user", "content": "the clock?"}, call, output], tools=TOOLS)
    assert "`clock` answered: noon" in response.output_text


@pytest.mark.parametrize(
    ("choice", "names"),
    [("none", []), ("required", ["get_weather"]), ({"type": "function", "name": "clock"}, ["clock"])],
)
def test_tool_choice_is_respected(choice: object, names: list[str]) -> None:
    response = told(tools=TOOLS, tool_choice=choice)
    assert [item.name for item in response.output if item.type == "function_call"] == names


def test_a_text_format_is_kept() -> None:
    schema = {"properties": {"km": {"type": "integer"}}, "required": ["km"]}
    shape = {"format": {"type": "json_schema", "name": "river", "schema": schema}}
    assert json.loads(told(text=shape).output_text) == {"km": 1}


@pytest.mark.parametrize("wrong", [{"input": []}, {"input": 3}, {"max_output_tokens": 0}, {"tool_choice": "required"}])
def test_a_wrong_member_is_refused(wrong: dict[str, Any]) -> None:
    assert refused(PATH, {**ASKED, **wrong})[0] == 400
