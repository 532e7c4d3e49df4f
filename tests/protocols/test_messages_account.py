"""Anthropic messages that broke off: how the rest is asked for, and how it reads to the client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.protocols.account import Continues
from proxy.protocols.messages_account import MessagesAccount
from proxy.protocols.splice import Differs, Spent
from proxy.wire.sse import Event
from tests.support.answers import (
    block_events,
    body_of,
    data_of,
    events_of,
    message_end,
    message_event,
    message_start,
    message_text,
)

ASKED = [{"role": "user", "content": "Hi"}]
NOTHING = Spent(0, 0)
BROKEN = message_start("first") + block_events(0, "Hello", " wor", closed=False)
AGAIN = message_start("second") + block_events(0, "Hell", "o world", "!") + message_end(9)


def account_of(wire: bytes, **members: Any) -> MessagesAccount:
    account = MessagesAccount(body_of(**({"messages": ASKED, "max_tokens": 10} | members)))
    for event in events_of(wire):
        account.hear(event)
    return account


def rest(account: MessagesAccount, wire: bytes, how: Continues = "replay", spent: Spent = NOTHING) -> list[Event]:
    return account.splice(how, spent).passed(events_of(wire))


def kinds(events: list[Event]) -> list[str]:
    return [event.type.decode() for event in events]


# ---- what is asked ----


def test_a_prefill_is_the_assistants_message_without_a_blank_at_its_end() -> None:
    account = account_of(message_start("a") + block_events(0, "Hello", " \n", closed=False))
    body = json.loads(account.body_for("prefill").raw)
    assert body["messages"] == [*ASKED, {"role": "assistant", "content": "Hello"}]
    assert body["max_tokens"] == 8
    told = message_start("b") + block_events(0, " \n", "world")
    assert message_text(rest(account, told, "prefill")) == "world"
    assert message_text(rest(account, message_start("b") + block_events(0, "world"), "prefill")) == "world"


def test_a_clients_own_prefill_is_lengthened() -> None:
    account = account_of(BROKEN, messages=[*ASKED, {"role": "assistant", "content": "Well,"}])
    assert json.loads(account.body_for("prefill").raw)["messages"][-1]["content"] == "Well,Hello wor"


def test_half_a_stop_word_is_left_to_the_model() -> None:
    account = account_of(message_start("a") + block_events(0, "abc E", closed=False), stop_sequences=["END"])
    assert json.loads(account.body_for("prefill").raw)["messages"][-1]["content"] == "abc"
    with pytest.raises(Differs):
        rest(account, message_start("b") + block_events(0, " other"), "prefill")


@pytest.mark.parametrize(
    "wire",
    [
        message_start("a"),
        message_start("a") + block_events(0, "Hm", kind="thinking", closed=False),
        message_start("a") + block_events(0, "Hm", kind="thinking") + block_events(1, "So", closed=False),
        message_start("a") + block_events(0, "Yes"),
        message_start("a") + block_events(0, " \n", closed=False),
    ],
    ids=["no text", "a thought", "a thought and text", "a whole block", "only blanks"],
)
def test_what_is_not_one_block_of_text_is_replayed(wire: bytes) -> None:
    account = account_of(wire)
    assert account.can_go_on()
    assert account.body_for("prefill") is account.body


@pytest.mark.parametrize(
    "event",
    [
        message_event("content_block_start", index=1, content_block={"type": "tool_use", "id": "t", "input": {}}),
        message_event("content_block_delta", index=0, delta={"type": "citations_delta", "citation": {}}),
        message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
    ],
    ids=["tool use", "citation", "the end"],
)
def test_what_is_no_text_is_not_continued(event: bytes) -> None:
    assert not account_of(BROKEN + event).can_go_on()


def test_an_error_event_is_kept_apart() -> None:
    account = account_of(BROKEN + message_event("error", error={"type": "overloaded_error", "message": "no"}))
    assert account.failure is not None
    assert account.can_go_on()


# ---- what goes on ----


def test_the_client_sees_one_message() -> None:
    passed = rest(account_of(BROKEN), AGAIN, spent=Spent(7, 2))
    assert message_text(passed) == "ld!"
    assert kinds(passed) == [
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert data_of(passed)[3]["usage"] == {"output_tokens": 11}


def test_events_of_the_rest_go_on_as_they_are() -> None:
    again = message_start("b") + block_events(0, "Hello wor", "ld", "!", " Bye", closed=False)
    passed = rest(account_of(BROKEN), again)
    assert b"".join(event.wire for event in passed) in again


def test_behind_a_prefill_all_goes_on_but_the_beginning() -> None:
    passed = rest(account_of(BROKEN), message_start("b") + block_events(0, "ld", "!") + message_end(3), "prefill")
    assert message_text(passed) == "ld!"
    assert kinds(passed)[0] == "content_block_delta"


def test_a_model_that_has_nothing_to_add_still_ends_the_block() -> None:
    passed = rest(account_of(BROKEN), message_start("b") + message_end(0), "prefill", Spent(7, 2))
    assert kinds(passed) == ["content_block_stop", "message_delta", "message_stop"]
    assert data_of(passed)[0] == {"type": "content_block_stop", "index": 0}


def test_thoughts_and_their_signatures_are_told_once() -> None:
    signature = message_event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"})
    thought = block_events(0, "Hm", ", so", kind="thinking", closed=False)
    stop = message_event("content_block_stop", index=0)
    told = message_start("a") + thought + signature + stop + block_events(1, "Ye", closed=False)
    again = message_start("b") + thought + signature + stop + block_events(1, "Yes", ".") + message_end(5)
    passed = rest(account_of(told), again)
    assert message_text(passed) == "s."
    assert {data.get("index") for data in data_of(passed)[:3]} == {1}


@pytest.mark.parametrize(
    "again",
    [
        block_events(0, "Hallo"),
        block_events(0, "Hello"),
        block_events(0, "Hello", kind="thinking"),
        block_events(0, "Hello", closed=False) + block_events(1, "other"),
        message_end(3),
    ],
    ids=["other text", "less text", "another block", "a block too many", "an end"],
)
def test_a_replay_that_is_another_answer_differs(again: bytes) -> None:
    with pytest.raises(Differs):
        rest(account_of(BROKEN), message_start("b") + again)


def test_a_longer_block_than_the_one_that_was_told_differs() -> None:
    account = account_of(message_start("a") + block_events(0, "Yes") + block_events(1, "No", closed=False))
    with pytest.raises(Differs):
        rest(account, message_start("b") + block_events(0, "Yes, well") + block_events(1, "No"))


def test_other_blocks_may_follow_what_was_told() -> None:
    tool = message_event("content_block_start", index=1, content_block={"type": "tool_use", "id": "t", "input": {}})
    again = message_start("b") + block_events(0, "Hello wor") + tool
    assert kinds(rest(account_of(BROKEN), again)) == ["content_block_stop", "content_block_start"]
