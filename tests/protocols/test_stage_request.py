"""What is an `LLMRequest`, what an endpoint refuses of it, and which chat completion it becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import InvalidRequest
from proxy.protocols.stage_request import LLMRequest, UnprocessableRequest, stage_id_of

LEAST = {"stage_id": "s1", "model_container": "traditional", "user_prompt": "hi"}


def parsed(**members: object) -> LLMRequest:
    return LLMRequest.parse(json.dumps({**LEAST, **members}))


def problems(raw: bytes | str) -> list[dict[str, Any]]:
    with pytest.raises(UnprocessableRequest) as caught:
        LLMRequest.parse(raw)
    assert caught.value.status == 422
    assert all(list(problem) == ["loc", "msg", "type"] for problem in caught.value.problems)
    return caught.value.problems


def test_the_least_request_becomes_the_least_completion() -> None:
    assert parsed().chat_completion(stream=True) == {
        "model": "traditional",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }


def test_everything_that_is_given_reaches_the_completion_and_nothing_else() -> None:
    asked = parsed(
        system_prompt="Be brief.",
        max_tokens=[100, 400],
        temperature=[0, 0.7],
        synthesis=True,
        strategy="synthesis",
        stream=None,
        top_k=5,
        tools=[{"type": "function"}],
    )
    assert asked.chat_completion(stream=False) == {
        "model": "traditional",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_tokens": 100,
        "temperature": 0,
        "stream": False,
    }
    assert asked.synthesis_numbers() == {"max_tokens": 400, "temperature": 0.7}
    assert asked.synthesis


@pytest.mark.parametrize(
    ("given", "first", "second"), [(7, 7, 7), ([7], 7, 7), ([7, 9], 7, 9), (-1, -1, -1), (0, 0, 0)]
)
def test_one_number_or_two(given: object, first: int, second: int) -> None:
    for name in ("max_tokens", "temperature"):
        asked = parsed(**{name: given})
        assert asked.chat_completion(stream=True)[name] == first
        assert asked.synthesis_numbers()[name] == second


def test_what_is_null_is_left_out() -> None:
    assert parsed(max_tokens=None, temperature=None, strategy=None, stream=None) == parsed()
    assert parsed().synthesis_numbers() == {}


@pytest.mark.parametrize("text", ["", "über 🌊", "a\nb\0c", "x" * 100_000])
def test_prompts_may_be_any_text(text: str) -> None:
    messages = parsed(user_prompt=text, system_prompt=text).chat_completion(stream=True)["messages"]
    assert messages == [{"role": r, "content": text} for r in ("system", "user") if text or r == "user"]


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "a number for an id": ({"stage_id": 1}, "stage_id"),
    "a line break in an id": ({"stage_id": "a\nb"}, "stage_id"),
    "a NUL in an id": ({"stage_id": "\0"}, "stage_id"),
    "a long id": ({"stage_id": "x" * 1025}, "stage_id"),
    "no text for a model": ({"model_container": None}, "model_container"),
    "a list for a prompt": ({"user_prompt": ["hi"]}, "user_prompt"),
    "null for a system prompt": ({"system_prompt": None}, "system_prompt"),
    "a bool for tokens": ({"max_tokens": True}, "max_tokens"),
    "a bool among tokens": ({"max_tokens": [1, False]}, "max_tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "a text for tokens": ({"max_tokens": "5"}, "max_tokens"),
    "three numbers": ({"max_tokens": [1, 2, 3]}, "max_tokens"),
    "no number at all": ({"temperature": []}, "temperature"),
    "null in a pair": ({"temperature": [None, 1]}, "temperature"),
    "a bool for temperature": ({"temperature": False}, "temperature"),
    "infinity": ({"temperature": float("inf")}, "temperature"),
    "a number for a bool": ({"synthesis": 1}, "synthesis"),
    "a text for a bool": ({"stream": "true"}, "stream"),
    "a strategy nobody knows": ({"strategy": "guess"}, "strategy"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_member_is_named_once_and_its_value_not_repeated(case: str) -> None:
    members, name = WRONG[case]
    [problem] = problems(json.dumps({**LEAST, **members}))
    assert problem["loc"] == ["body", name]
    assert "guess" not in problem["msg"]


def test_all_problems_are_told_at_once() -> None:
    found = problems('{"stage_id":"s","max_tokens":true}')
    assert [problem["loc"][-1] for problem in found] == ["model_container", "user_prompt", "max_tokens"]
    assert found[0] == {"loc": ["body", "model_container"], "msg": "Field required", "type": "missing"}


@pytest.mark.parametrize("raw", [b"", b"canary", b"[]", b'"canary"', b"null", b"{", b'{"a":"\xff"}', b'{"a":' * 5000])
def test_what_is_no_json_object_is_one_problem_of_the_body(raw: bytes) -> None:
    [problem] = problems(raw)
    assert problem["loc"] == ["body"]
    assert "canary" not in str(problem)


def test_the_problems_read_as_one_sentence_too() -> None:
    with pytest.raises(UnprocessableRequest, match=r"^model_container: Field required; user_prompt: Field required$"):
        LLMRequest.parse(b'{"stage_id":"s"}')


@pytest.mark.parametrize(
    ("path", "members", "hint"),
    [
        ("/stream/v1/chat", {"strategy": "tool_call"}, "/stream/v1/toolchain"),
        ("/completion/v1/chat", {"strategy": "tool_call"}, "/completion/v1/toolchain"),
        ("/stream/v1/chat", {"stream": False}, "/completion/v1/chat"),
        ("/stream/v1/toolchain", {"stream": False}, "/completion/v1/toolchain"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_with_the_one_that_can(
    path: str, members: dict[str, object], hint: str
) -> None:
    with pytest.raises(InvalidRequest, match=hint) as caught:
        parsed(**members).refuse_misuse(path)
    assert caught.value.status == 400


@pytest.mark.parametrize("path", ["/stream/v1/toolchain", "/completion/v1/toolchain"])
@pytest.mark.parametrize("strategy", ["chat_completion", "tool_call", "synthesis", None])
def test_the_toolchain_takes_every_strategy(path: str, strategy: str | None) -> None:
    parsed(strategy=strategy).refuse_misuse(path)


@pytest.mark.parametrize("path", ["/stream/v1/chat", "/completion/v1/chat"])
def test_a_chat_takes_the_other_ones(path: str) -> None:
    for strategy in ("chat_completion", "synthesis", None):
        parsed(strategy=strategy, stream=True).refuse_misuse(path)
    parsed(stream=False).refuse_misuse(path.replace("stream", "completion"))


@pytest.mark.parametrize(
    ("raw", "stage_id"),
    [
        ('{"stage_id":"s1"}', "s1"),
        ('{"stage_id":"über"}', "über"),
        ('{"stage_id":1}', ""),
        ('{"stage_id":"a\\nb"}', ""),
        ('{"stage_id":"\\ud800"}', ""),
        ("[]", ""),
        ("canary", ""),
        ("", ""),
        ("[" * 100_000, ""),
    ],
)
def test_a_stage_id_is_found_in_whatever_came(raw: str, stage_id: str) -> None:
    assert stage_id_of(raw) == stage_id
