"""What every account keeps of an answer, whatever its protocol: its text, cheaply and not for ever."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols.account import LONGEST_TEXT_BYTES, MOST_LESSONS, Account, around_text, half_stop
from proxy.protocols.chat_account import ChatAccount
from proxy.wire.sse import Event
from tests.support.answers import body_of, chat_events, chunk_event, events_of


def heard(wire: bytes) -> ChatAccount:
    account = ChatAccount(body_of(messages=[]))
    for event in events_of(wire):
        account.hear(event)
    return account


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=30))
def test_the_text_is_what_was_said_however_it_was_cut(texts: list[str]) -> None:
    written = [json.dumps(text, ensure_ascii=number % 2 == 0) for number, text in enumerate(texts)]
    events = [b'data: {"id":"a","choices":[{"index":0,"delta":{"content":%b}}]}\n\n' for _ in texts]
    wire = b"".join(event % text.encode("utf-8", "surrogatepass") for event, text in zip(events, written, strict=True))
    account = heard(wire)
    assert account.text("content") == "".join(texts)
    assert account.texts == len(texts)
    assert account.can_go_on()


def test_an_event_like_the_last_one_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    look = ChatAccount._look

    def noted(self: ChatAccount, event: Event) -> None:
        looked.append(event.data)
        look(self, event)

    monkeypatch.setattr(ChatAccount, "_look", noted)
    account = heard(chat_events("a", "one", " two", ' "three"', " four", *(" more" for _ in range(100))))
    assert len(looked) == 5  # the role, the first text, the quoted one, the finish and [DONE]
    assert account.texts == 104


def test_text_with_quotes_in_it_costs_no_lessons() -> None:
    account = heard(chat_events("a", "one", *['"'] * (MOST_LESSONS + 5), "two", finish=None))
    assert account.text("content") == "one" + '"' * (MOST_LESSONS + 5) + "two"
    assert account._lessons_left == MOST_LESSONS - 1


def test_events_that_keep_differing_are_not_learned_for_ever() -> None:
    wire = b"".join(chunk_event("a", {"content": f"<{number}>"}, obfuscation=f"x{number}") for number in range(50))
    account = heard(wire)
    assert account.text("content") == "".join(f"<{number}>" for number in range(50))
    assert account._lessons_left == 0


def test_an_answer_that_is_too_long_is_not_kept() -> None:
    text = "x" * (LONGEST_TEXT_BYTES // 8)
    account = heard(chat_events("a", *[text] * 8, finish=None))
    assert account.can_go_on()
    account = heard(chat_events("a", *[text] * 9, *["y"] * 3, finish=None))
    assert not account.can_go_on()
    assert account._channels == {}
    assert bytes(account._current) == b""


def test_text_that_is_no_json_cannot_be_told_to_a_model() -> None:
    broken = chat_events("a", "one", "two", finish=None).replace(b"two", rb"\x")
    assert not heard(broken).can_go_on()


@pytest.mark.parametrize(
    ("text", "stops", "half"),
    [
        ("abc", None, ""),
        ("abcE", "END", "E"),
        ("abcEN", ["X", "END"], "EN"),
        ("abc\n", ["\n\n"], "\n"),
        ("abcE", ["E"], ""),
        ("aab", ["ab!", "aab?"], "aab"),
        ("abc", [1, None], ""),
        ("abc", {"no": "list"}, ""),
    ],
)
def test_the_half_of_a_stop_word_at_a_texts_end(text: str, stops: object, half: str) -> None:
    assert half_stop(text, stops) == half


def test_what_stands_around_a_text_is_only_told_where_it_is_certain() -> None:
    assert around_text(b'{"a":"b","c":"text","d":1}', "text") == (b'{"a":"b","c":"', b'","d":1}')
    assert around_text(b'{"a":"text","c":"text"}', "text") is None
    assert around_text(b'{"a":"b"}', "text") is None


def test_limits_are_lowered_by_what_was_used_and_never_to_nothing() -> None:
    account = heard(chat_events("a", "one", "two", "three", finish=None))
    account.body = body_of(max_tokens=10, max_completion_tokens=2, min_tokens=1)
    limits = account._less_used(("max_tokens", 1), ("max_completion_tokens", 1), ("min_tokens", 0), ("others", 1))
    assert limits == {"max_tokens": 7, "max_completion_tokens": 1, "min_tokens": 0}


def test_an_account_alone_knows_no_protocol() -> None:
    account = Account(body_of())
    with pytest.raises(NotImplementedError):
        account.body_for("prefill")
