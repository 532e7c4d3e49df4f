"""Conversations: what a request goes on from, for how long, and what becomes of it in bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import InvalidRequest
from proxy.streams.conversations import (
    Conversation,
    Conversations,
    PreviousResponseNotFound,
    Unfolding,
    items_of,
    joined,
)


def unknown(held: Conversations, *ids: str) -> None:
    for id in ids:
        with pytest.raises(PreviousResponseNotFound) as refused:
            held.find(id)
        assert (refused.value.status, refused.value.code) == (400, "previous_response_not_found")
        assert refused.value.param == "previous_response_id"


# ---- which are known ----


def test_the_latest_of_each_lane_is_known_from_every_lane() -> None:
    held = Conversations(100)
    for lane, id in ((None, "r1"), ("a", "r2"), ("a", "r3")):
        held.keep(lane, Conversation(id, b"{}"))
    assert [held.find(id).response_id for id in ("r1", "r3")] == ["r1", "r3"]
    unknown(held, "r2", "r4")


def test_a_forgotten_lane_takes_no_other_with_it() -> None:
    held = Conversations(100)
    held.keep("a", Conversation("r1", b"{}"))
    held.keep("b", Conversation("r2", b"{}"))
    held.forget("a")
    held.forget("never")
    unknown(held, "r1")
    assert held.find("r2").items == b"{}"


def test_those_that_have_not_moved_for_longest_make_room() -> None:
    held = Conversations(100)
    held.keep("a", Conversation("r1", b"x" * 40))
    held.keep("b", Conversation("r2", b"x" * 40))
    held.keep("a", Conversation("r3", b"x" * 50))
    assert held.find("r2")
    held.keep("c", Conversation("r4", b"x" * 20))
    unknown(held, "r2")
    assert held.find("r3")
    held.keep("d", Conversation("r5", b"x" * 101))
    unknown(held, "r3", "r4", "r5")
    held.keep("e", Conversation("r6", b"x" * 100))
    assert held.find("r6")


# ---- how they grow ----


def event(type: str, **members: Any) -> bytes:
    return json.dumps({"type": type, **members}).encode()


def completed(**response: Any) -> bytes:
    return event("response.completed", response={"id": "r1", **response})


def items(conversation: Conversation | None) -> Any:
    assert conversation is not None
    return json.loads(b"[%b]" % conversation.items)


def test_the_output_goes_behind_the_input() -> None:
    grown = Unfolding(b'{"n":1}', 1000).over(completed(output=[{"n": 2}, {"n": 3}]))
    assert items(grown) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert grown is not None
    assert grown.response_id == "r1"


@pytest.mark.parametrize("last", [{}, {"output": None}, {"output": []}])
def test_an_output_told_item_by_item_only_is_put_together(last: dict[str, Any]) -> None:
    unfolding = Unfolding(b"", 1000)
    unfolding.item_done(event("response.output_item.done", item={"n": 1}))
    unfolding.item_done(event("response.output_item.done", item={"n": 2}))
    assert items(unfolding.over(completed(**last))) == [{"n": 1}, {"n": 2}]


def test_an_output_in_the_last_event_is_not_taken_twice() -> None:
    unfolding = Unfolding(b"", 1000)
    unfolding.item_done(event("response.output_item.done", item={"n": 1}))
    assert items(unfolding.over(completed(output=[{"n": 1}]))) == [{"n": 1}]


def test_no_more_is_held_than_would_be_kept() -> None:
    unfolding = Unfolding(b"", 100)
    for _ in range(10):
        unfolding.item_done(event("response.output_item.done", item={"n": "x" * 20}))
    assert len(items(unfolding.over(completed()))) == 1


@pytest.mark.parametrize("last", [b"{}", b"[]", b"oops", b'{"response":7}', b'{"response":{"id":7,"output":[]}}'])
def test_a_response_without_an_id_cannot_be_gone_on_from(last: bytes) -> None:
    assert Unfolding(b"", 1000).over(last) is None


def test_items_that_are_none_are_left_out() -> None:
    assert items(Unfolding(b"", 1000).over(completed(output=[7, {"n": 1}, None]))) == [{"n": 1}]


def test_half_a_character_goes_on() -> None:
    last = rb'{"response":{"id":"r","output":[{"text":"\ud83d"}]}}'
    assert items(Unfolding(b"", 1000).over(last)) == [{"text": "\ud83d"}]


# ---- input ----


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b'[{"role":"user"}, {"n":1.50}]', b'{"role":"user"}, {"n":1.50}'),
        (b" [ ] ", b""),
        (b'"hi \\"you\\""', b'{"type":"message","role":"user","content":"hi \\"you\\""}'),
        (b"null", b""),
        (None, b""),
    ],
)
def test_an_input_is_a_list_of_items_or_a_text(written: bytes | None, expected: bytes) -> None:
    assert items_of(written) == expected


@pytest.mark.parametrize("written", [b"7", b"true", b'{"role":"user"}'])
def test_any_other_input_is_refused(written: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        items_of(written)
    assert refused.value.param == "input"


def test_runs_of_items_are_joined_by_commas_where_there_are_any() -> None:
    assert joined(b"", b"1", b"", b"2,3", b"") == b"1,2,3"
