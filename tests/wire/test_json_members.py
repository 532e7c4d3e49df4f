"""The members of a body: the quick way finds what the thorough one finds, or leaves it to it."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequest
from proxy.wire import json_members
from proxy.wire.json_members import Member, decoded_value, edited, edited_pieces, find_members

ONCE = frozenset({"model", "stream"})


def found(raw: bytes) -> dict[str, object]:
    return {name: decoded_value(raw[start:end]) for name, start, end in find_members(raw, ONCE)}


def told(raw: bytes) -> tuple[Member, ...] | str:
    """The members, or the complaint."""
    try:
        return find_members(raw, ONCE)
    except InvalidRequest as error:
        return error.message


def thoroughly(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Member, ...] | str:
    with monkeypatch.context() as patched:
        patched.setattr(json_members, "_find_quickly", lambda raw: None)
        return told(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "stream", "n", "a b", 'q"', "back\\slash", "grün", "", "x.y-z"]) | st.text(max_size=5)


@given(st.dictionaries(NAMES, JSON, max_size=6), st.sampled_from([None, 1]), st.booleans())
def test_every_member_is_found_with_its_value(body: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    assert found(json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")) == {
        name.encode("utf-8", "replace").decode() if not ascii_only else name: value
        for name, value in _sent(body, ascii_only)
    }


def _sent(body: dict[str, object], ascii_only: bool) -> list[tuple[str, object]]:
    """What arrives of it: half a surrogate pair does not survive UTF-8."""
    sent: dict[str, object] = json.loads(json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "replace"))
    return [*sent.items()]


PIECES = st.sampled_from(
    [
        *'"\\{}[]:, a1-.e0\n',
        "\\u",
        "d83d",
        "true",
        "null",
        "NaN",
        '"model"',
        '"a":',
        '{"a":',
        "ü",
        " ",
        *string.whitespace,
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_quick_way_says_nothing_else_than_the_thorough_one(text: str) -> None:
    raw = ('{"model":"m",' + text).encode()
    with pytest.MonkeyPatch.context() as patched:
        assert told(raw) == thoroughly(raw, patched)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"b":2,"a":3}',
        b'{"a":2,"a":2}',
        b'{"\\u0061":1}',
        b'{"a":"\\ud83d"}',
        b'{"a":1e999,"b":[1,{"c":"}"}]}',
        b' \n{ "a"\t:\r1 ,"b" : { } } ',
        b"{}",
        b" { } ",
    ],
)
def test_odd_bodies_read_alike_both_ways(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(raw) == thoroughly(raw, monkeypatch)
    assert not isinstance(told(raw), str)


@pytest.mark.parametrize("raw", [b'{"model":"a","model":"b"}', b'{"model":"a","\\u006dodel":"b"}'])
def test_a_member_that_may_come_once_is_refused_twice(raw: bytes) -> None:
    assert told(raw) == "The body has two members `model`: send one."


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":1} x',
        b'{"a":nan}',
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\n"}',
    ],
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    assert "not a JSON object" in str(told(raw))


def test_an_edit_moves_no_other_byte() -> None:
    raw = b' {"model" : "a", "x":{"model":"inner"} , "stream":true} '
    changes = {"model": "b", "n": 2, "stream": b"false"}
    assert edited(raw, find_members(raw, ONCE), changes) == (
        b' {"n":2,"model" : "b", "x":{"model":"inner"} , "stream":false} '
    )


def test_what_an_edit_leaves_as_it_is_is_not_copied() -> None:
    raw = b'{"messages":["hi"],"model":"a","stream":true}'
    pieces = edited_pieces(raw, find_members(raw, ONCE), {"model": "b", "n": 2})
    assert b"".join(pieces) == b'{"n":2,"messages":["hi"],"model":"b","stream":true}'
    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert all(view.obj is raw for view in views)
    assert b"".join(views) == raw.replace(b'"a"', b"")
