import json
from typing import Any

import pytest
from openai.types import Completion

from proxy.upstream.demo.completions import texts_of
from proxy.upstream.demo.settings import DemoSettings
from tests.support.demo import checked, refused, streamed, whole

PATH = "/v1/completions"
ASKED: dict[str, Any] = {"model": "river-7b", "prompt": "Once upon a river"}


def text_of(data: list[str], index: int = 0) -> str:
    choices = [choice for one in data[:-1] for choice in json.loads(one)["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_a_whole_completion_is_the_official_type_and_quotes_the_prompt() -> None:
    told = checked(Completion, json.dumps(whole(PATH, ASKED)))
    assert "“Once upon a river”" in told.choices[0].text
    assert told.choices[0].finish_reason == "stop"
    assert told.usage is not None
    assert told.usage.completion_tokens > 0


def test_streamed_and_whole_say_the_same() -> None:
    assert text_of(streamed(PATH, ASKED)) == whole(PATH, ASKED)["choices"][0]["text"]


def test_a_stream_has_a_chunk_for_each_token_an_end_and_usage_where_asked_for() -> None:
    data = streamed(PATH, {**ASKED, "stream_options": {"include_usage": True}}, DemoSettings(tokens=4))
    *tokens, end, usage = (json.loads(one) for one in data[:-1])
    assert len(tokens) == 4
    assert [one["choices"][0]["finish_reason"] for one in (*tokens, end)] == [*[None] * 4, "stop"]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    checked(Completion, json.dumps(end))
    checked(Completion, json.dumps(usage))


def test_a_limit_ends_the_text_with_length() -> None:
    told = whole(PATH, {**ASKED, "max_tokens": 3})
    assert (told["choices"][0]["finish_reason"], told["usage"]["completion_tokens"]) == ("length", 3)


def test_each_prompt_gets_its_choices() -> None:
    body = {**ASKED, "prompt": ["one mill", "two mills"], "n": 2}
    choices = whole(PATH, body)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert ["one mill" in choice["text"] for choice in choices] == [True, True, False, False]
    data = streamed(PATH, body)
    assert [text_of(data, index) for index in range(4)] == [choice["text"] for choice in choices]


def test_echo_puts_the_prompt_first() -> None:
    assert whole(PATH, {**ASKED, "echo": True})["choices"][0]["text"].startswith("Once upon a river")
    assert text_of(streamed(PATH, {**ASKED, "echo": True})).startswith("Once upon a river")


def test_token_ids_stand_for_themselves() -> None:
    assert texts_of([1, 2]) == ["1 2"]
    assert texts_of([[1, 2], [3]]) == ["1 2", "3"]


@pytest.mark.parametrize("wrong", [{"prompt": ""}, {"prompt": []}, {"prompt": None}, {"max_tokens": -1}])
def test_a_wrong_member_is_refused(wrong: dict[str, Any]) -> None:
    assert refused(PATH, {**ASKED, **wrong})[0] == 400
