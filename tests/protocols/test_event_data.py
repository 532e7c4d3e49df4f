"""What bytes alone tell about an event's data."""

from __future__ import annotations

import pytest

from proxy.protocols.event_data import compact, could_be_object, count, decoded, event_type, is_done, is_set


@pytest.mark.parametrize(
    ("data", "could"),
    [(b"{}", True), (b" {\n} ", True), (b"{x}", True), (b"", False), (b" ", False), (b"{", False), (b"[{}]", False)],
)
def test_an_object_has_braces_at_both_ends(data: bytes, could: bool) -> None:
    assert could_be_object(data) is could


def test_the_marker_is_the_whole_data() -> None:
    assert is_done(b"[DONE]")
    assert is_done(b" [DONE]\t")
    assert not is_done(b"[DONE] {}")
    assert not is_done(b'{"content":"[DONE]"}')


@pytest.mark.parametrize(
    ("data", "set_"),
    [
        (b"{}", False),
        (b'{"a":null}', False),
        (b'{"a": null}', False),
        (b'{"a":"","b":{"a": ""}}', False),
        (b'{"a":1}', True),
        (b'{"a":"null"}', True),
        (b'{"a":null,"b":{"a":1}}', True),
        (b'{"a":1,"b":{"a":null}}', True),
        (b'{"b":"a"}', True),
        (b'{"b":"\\"a\\":1"}', False),
    ],
)
def test_a_member_may_be_set_unless_it_is_null_everywhere(data: bytes, set_: bool) -> None:
    assert is_set(data, b'"a"', data.find(b'"a"')) is set_


@pytest.mark.parametrize(
    ("data", "type"),
    [
        (b'{"type":"ping"}', b"ping"),
        (b'{"type": "ping", "x": 1}', b"ping"),
        (b'{"x":{"type":"inner"},"type":"outer"}', b"outer"),
        (b'{"type":"outer","x":{"type":"inner"}}', b"outer"),
        (b'{ "type" : "p\\u0069ng" }', b"ping"),
        (b'{"type":7}', b""),
        (b'{"x":1}', b""),
        (b"{x}", b""),
        (b'{"error":{"message":"m"}}', b"error"),
        (b'{"type":null,"error":"m"}', b"error"),
        (b'{"error":null}', b""),
    ],
)
def test_the_type_is_the_objects_own(data: bytes, type: bytes) -> None:
    assert event_type(data) == type


def test_only_objects_are_decoded() -> None:
    assert decoded(b'{"a":"\xff"}') == {"a": "\ufffd"}
    assert [decoded(data) for data in (b"[]", b"1", b"{", b"", b"{" * 9 + b"}")] == [None] * 5
    assert decoded(b'{"a":' * 100_000 + b"1" + b"}" * 100_000) is None


def test_json_is_written_in_one_ascii_line() -> None:
    assert compact({"a": ["é\n", None]}) == b'{"a":["\\u00e9\\n",null]}'


def test_counts_only_grow() -> None:
    usage = {"a": 3, "b": 4, "c": "5", "d": True}
    assert count(None, usage, "a", "b", "c", "d", "e") == 7
    assert count(9, usage, "a") == 9
    assert count(None, {"a": 0}, "a") == 0
    assert count(2, None, "a") == 2
    assert count(None, {"a": None}, "a") is None
