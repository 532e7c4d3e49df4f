"""One answer out of two, whatever the protocol: what the client has is swallowed, in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols.chat_account import ChatSplice
from proxy.protocols.splice import Differs, Spent, Splice, reworded
from proxy.wire.sse import Event
from tests.support.answers import chat_events, chat_text, events_of

NOTHING = Spent(0, 0)


def splice(told: str, *, is_prefill: bool = False, lenient: bool = False) -> ChatSplice:
    return ChatSplice({"content": told}, NOTHING, {"id": "first"}, is_prefill=is_prefill, lenient=lenient)


@given(st.text(min_size=1, max_size=40), st.data())
def test_replays_of_any_cut_give_the_rest_of_the_text(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)), label="broken off at")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text)), max_size=8), label="cut at"))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    joined = splice(text[:at])
    passed = [event for piece in events_of(chat_events("b", *pieces)) for event in joined.passed([piece])]
    assert chat_text(passed) == text[at:]
    assert joined.through
    assert passed[-1].data == b"[DONE]"


@pytest.mark.parametrize("pieces", [["Hallo"], ["Hel", "p"], ["Hello", " you"], ["He"], [""]])
def test_a_replay_that_says_something_else_or_ends_before_is_noticed(pieces: list[str]) -> None:
    joined = splice("Hello world")
    with pytest.raises(Differs):
        joined.passed(events_of(chat_events("b", *pieces)))
    assert not joined.through


def test_nothing_has_gone_through_while_all_is_swallowed() -> None:
    joined = splice("Hello world")
    assert joined.passed(events_of(chat_events("b", "Hel", "lo", finish=None))) == []
    assert not joined.through
    assert chat_text(joined.passed(events_of(chat_events("b", " world!", finish=None)))) == "!"
    assert joined.through


@pytest.mark.parametrize(
    ("pieces", "text"),
    [(["E", "F"], "F"), (["EF"], "F"), (["E"], ""), ([""], "")],
    ids=["cut", "whole", "only", "none"],
)
def test_behind_a_prefill_the_half_stop_word_is_swallowed_if_it_comes(pieces: list[str], text: str) -> None:
    passed = splice("E", is_prefill=True).passed(events_of(chat_events("b", *pieces)))
    assert chat_text(passed) == text


def test_behind_a_prefill_another_text_than_the_half_stop_word_differs() -> None:
    with pytest.raises(Differs):
        splice("E", is_prefill=True).passed(events_of(chat_events("b", "F")))


@pytest.mark.parametrize(("pieces", "text"), [([" world"], "world"), (["world"], "world"), ([" ", "x"], "x")])
def test_a_lenient_one_takes_what_comes(pieces: list[str], text: str) -> None:
    passed = splice(" ", is_prefill=True, lenient=True).passed(events_of(chat_events("b", *pieces)))
    assert chat_text(passed) == text


def test_an_event_like_the_last_one_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    look = Splice._look

    def noted(self: Splice, event: Event) -> list[Event]:
        looked.append(event.data)
        return look(self, event)

    monkeypatch.setattr(Splice, "_look", noted)
    joined = splice("one")
    passed = joined.passed(events_of(chat_events("b", "one", " two", *(f" {n}" for n in range(100)))))
    assert len(looked) == 5  # role, what is swallowed, the first of the rest, the finish, [DONE]
    assert chat_text(passed) == " two" + "".join(f" {n}" for n in range(100))


def test_an_event_keeps_its_name_when_it_is_reworded() -> None:
    assert reworded(b"{}", b"message_delta").wire == b"event: message_delta\ndata: {}\n\n"
    assert reworded(b"{}", b"").wire == b"data: {}\n\n"
