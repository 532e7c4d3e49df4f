"""Chat completions and completions that broke off: how the rest is asked for, and how it reads to the client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.protocols.account import Account, Continues
from proxy.protocols.chat_account import ChatAccount, chat_account
from proxy.protocols.splice import Differs, Spent
from proxy.request import RequestBody
from proxy.wire.sse import Event
from tests.support.answers import (
    body_of,
    chat_events,
    chat_text,
    chunk_event,
    completion_events,
    data_of,
    events_of,
)

ASKED = [{"role": "user", "content": "Hi"}]
NOTHING = Spent(0, 0)


def account_of(wire: bytes, **members: Any) -> Account:
    account = chat_account(body_of(**({"messages": ASKED} | members)))
    assert account is not None
    for event in events_of(wire):
        account.hear(event)
    return account


def sent(body: RequestBody) -> dict[str, Any]:
    value = json.loads(body.raw)
    assert isinstance(value, dict)
    return value


def rest(account: Account, wire: bytes, how: Continues = "replay", spent: Spent = NOTHING) -> list[Event]:
    return account.splice(how, spent).passed(events_of(wire))


BROKEN = chat_events("first", "Hello", " wor", finish=None)


# ---- what is asked ----


def test_a_replay_asks_the_same_again() -> None:
    account = account_of(BROKEN, max_tokens=9)
    assert account.body_for("replay") is account.body


def test_a_prefill_has_the_model_go_on_from_the_text() -> None:
    body = sent(account_of(BROKEN, max_tokens=9, temperature=0.5).body_for("prefill"))
    assert body["messages"] == [*ASKED, {"role": "assistant", "content": "Hello wor"}]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["max_tokens"], body["temperature"], body["model"], body["stream"]) == (7, 0.5, "chat", True)


def test_a_clients_own_prefill_is_lengthened() -> None:
    messages = [*ASKED, {"role": "assistant", "content": "Well, "}]
    asked: dict[str, Any] = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    body = sent(account_of(BROKEN, **asked).body_for("prefill"))
    assert body["messages"] == [*ASKED, {"role": "assistant", "content": "Well, Hello wor"}]


def test_a_prompt_is_lengthened() -> None:
    account = account_of(completion_events("first", "once", " upon", finish=None), prompt="Tell: ", max_tokens=2)
    body = sent(account.body_for("prefill"))
    assert (body["prompt"], body["max_tokens"]) == ("Tell: once upon", 1)
    assert "continue_final_message" not in body


@pytest.mark.parametrize(
    "members",
    [
        {"response_format": {"type": "json_schema"}},
        {"guided_regex": "a+"},
        {"structured_outputs": {"choice": ["a"]}},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    ],
)
def test_what_follows_a_grammar_is_replayed(members: dict[str, Any]) -> None:
    account = account_of(BROKEN, **members)
    assert account.body_for("prefill") is account.body


@pytest.mark.parametrize("members", [{"prompt": [1, 2]}, {"prompt": ["one"]}, {"echo": True}, {"suffix": "end"}])
def test_prompts_that_have_no_end_to_write_at_are_replayed(members: dict[str, Any]) -> None:
    account = account_of(completion_events("a", "text", finish=None), **({"prompt": "p"} | members))
    assert account.body_for("prefill") is account.body


def test_a_thought_is_replayed() -> None:
    thinking = chunk_event("a", {"reasoning_content": "Hm"})
    for wire in (thinking, thinking + chunk_event("a", {"content": "So"})):
        account = account_of(wire)
        assert account.can_go_on()
        assert account.body_for("prefill") is account.body


def test_before_the_first_word_it_is_replayed() -> None:
    account = account_of(chunk_event("a", {"role": "assistant", "content": ""}))
    assert account.can_go_on()
    assert account.body_for("prefill") is account.body


def test_half_a_stop_word_is_left_to_the_model() -> None:
    account = account_of(chat_events("a", "abcEN", finish=None), stop=["END"])
    assert sent(account.body_for("prefill"))["messages"][-1]["content"] == "abc"
    assert chat_text(rest(account, chat_events("b", "EN", "T", "er"), "prefill")) == "Ter"
    assert chat_text(rest(account, chat_events("b"), "prefill")) == ""
    with pytest.raises(Differs):
        rest(account, chat_events("b", "other"), "prefill")


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f"}},
        {"refusal": "No"},
        {"audio": {"data": "aa"}},
    ],
)
def test_what_is_no_text_is_not_continued(delta: dict[str, Any]) -> None:
    assert not account_of(BROKEN + chunk_event("first", delta)).can_go_on()


def test_an_answer_at_its_end_is_not_continued() -> None:
    assert not account_of(chat_events("a", "all")).can_go_on()


@pytest.mark.parametrize("members", [{"n": 2}, {"prompt": ["a", "b"]}])
def test_several_choices_have_no_account(members: dict[str, Any]) -> None:
    assert chat_account(body_of(**members)) is None
    assert isinstance(chat_account(body_of(n=1)), ChatAccount)


def test_a_choice_nobody_asked_for_is_not_continued() -> None:
    assert not account_of(BROKEN.replace(b'"index": 0', b'"index": 1')).can_go_on()


@pytest.mark.parametrize("error", [b'data: {"error":{"message":"died"}}\n\n', b'event: error\ndata: {"a":1}\n\n'])
def test_an_error_event_is_kept_apart(error: bytes) -> None:
    [event] = events_of(error)
    account = account_of(BROKEN)
    account.hear(event)
    assert account.failure is event
    assert account.can_go_on()


# ---- what goes on ----


def test_the_client_sees_one_answer() -> None:
    again = chat_events("second", "Hell", "o world", "!", " Bye")
    passed = rest(account_of(BROKEN), again)
    assert chat_text(passed) == "ld! Bye"
    found = [data for data in data_of(passed) if data != b"[DONE]"]
    assert {(data["id"], data["created"], data["model"]) for data in found} == {("first", 5, "model-first")}
    assert [choice["delta"].get("role") for data in found for choice in data["choices"]] == [None] * len(found)
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert passed[-1].data == b"[DONE]"


def test_behind_a_prefill_all_goes_on_but_the_role() -> None:
    passed = rest(account_of(BROKEN), chat_events("second", "ld", "!"), "prefill")
    assert chat_text(passed) == "ld!"
    assert [data["id"] for data in data_of(passed[:-1])] == ["first"] * 3


def test_a_role_that_comes_with_text_is_taken_out() -> None:
    both = chunk_event("b", {"role": "assistant", "content": "ld"})
    [event] = rest(account_of(BROKEN), both, "prefill")
    assert data_of([event])[0]["choices"][0]["delta"] == {"content": "ld"}


def test_completions_go_on_too() -> None:
    account = account_of(completion_events("first", "once", " up", finish=None), prompt="p")
    passed = rest(account, completion_events("second", "once upon", " a"))
    found = data_of(passed)
    assert "".join(data["choices"][0]["text"] for data in found[:-1]) == "on a"
    assert {data["id"] for data in found[:-1]} == {"first"}


def test_token_counts_are_those_of_both() -> None:
    again = chat_events("second", "Hello world", usage=(10, 4))
    passed = rest(account_of(BROKEN), again, spent=Spent(11, 2))
    [usage] = [data["usage"] for data in data_of(passed[:-1]) if "usage" in data]
    assert usage == {"prompt_tokens": 21, "completion_tokens": 6, "total_tokens": 27}


def test_counts_in_every_chunk_do_not_let_through_what_the_client_has() -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    again = chunk_event("b", {"content": "Hello"}, usage=counts) + chunk_event("b", {"content": " world"}, usage=counts)
    [event] = rest(account_of(BROKEN), again, spent=Spent(11, 2))
    assert data_of([event])[0]["usage"]["total_tokens"] == 24


def test_probabilities_of_tokens_that_the_client_has_are_left_out() -> None:
    again = chunk_event("b", {"content": "Hello world"})
    again = again.replace(b'"finish_reason": null', b'"finish_reason": null, "logprobs": {"content": [1]}')
    [event] = rest(account_of(BROKEN), again)
    choice = data_of([event])[0]["choices"][0]
    assert (choice["delta"]["content"], choice["logprobs"]) == ("ld", None)


def test_thoughts_and_answer_are_each_told_once() -> None:
    told = b"".join(chunk_event("a", {"reasoning_content": t}) for t in ("Hm", ", so")) + chunk_event(
        "a", {"content": "Yes"}
    )
    again = chunk_event("b", {"reasoning_content": "Hm, so"}) + chat_events("b", "Ye", "s, but")
    passed = rest(account_of(told), again)
    assert (chat_text(passed, "reasoning_content"), chat_text(passed)) == ("", ", but")


def test_a_thought_told_under_two_names_is_one() -> None:
    told = b"".join(chunk_event("a", {"reasoning": t, "reasoning_content": t}) for t in ("Hm", ", s"))
    again = b"".join(chunk_event("b", {"reasoning": t, "reasoning_content": t}) for t in ("Hm, so", " be it"))
    passed = rest(account_of(told), again)
    assert chat_text(passed, "reasoning") == chat_text(passed, "reasoning_content") == "o be it"


@pytest.mark.parametrize(
    "again",
    [
        chunk_event("b", {"reasoning_content": "Hm, another thought"}),
        chunk_event("b", {"reasoning_content": "Hm"}) + chunk_event("b", {"tool_calls": [{"index": 0}]}),
        chunk_event("b", {"content": "Yes, and"}) + chunk_event("b", {"reasoning_content": "Hm"}),
    ],
    ids=["longer thought", "tool call", "other order"],
)
def test_thoughts_that_lead_elsewhere_differ(again: bytes) -> None:
    told = chunk_event("a", {"reasoning_content": "Hm"}) + chunk_event("a", {"content": "Yes"})
    with pytest.raises(Differs):
        rest(account_of(told), again)


def test_a_second_choice_differs() -> None:
    with pytest.raises(Differs):
        rest(account_of(BROKEN), chunk_event("b", {"content": "Hello"}).replace(b'"index": 0', b'"index": 1'))


def test_tool_calls_may_follow_what_was_told() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}
    again = chat_events("b", "Hello wor", finish=None) + chunk_event("b", call) + chunk_event("b", {}, "tool_calls")
    deltas = [data["choices"][0]["delta"] for data in data_of(rest(account_of(BROKEN), again))]
    assert deltas == [call, {}]


def test_it_can_break_off_again_and_go_on_again() -> None:
    account = account_of(BROKEN)
    for event in rest(account, chat_events("second", "Hello wor", "ld, ", "how", finish=None)):
        account.hear(event)
    assert account.text("content") == "Hello world, how"
    passed = rest(account, chat_events("third", "Hello world,", " how", " are you"))
    assert chat_text(passed) == " are you"
    assert {data["id"] for data in data_of(passed[:-1])} == {"first"}
