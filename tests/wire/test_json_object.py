"""What may be spliced into a frame: held against Python's own decoder, which builds what the scanner only looks at."""

from __future__ import annotations

import json
import string
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.json_object import is_json_object, object_payload, splices

any_example = settings(derandomize=True, database=None, deadline=None)


def refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def is_object_to_python(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data.decode(), parse_constant=refuse), dict)
    except ValueError:
        return False


OBJECTS = [
    b"{}",
    b' \t\r\n{"a":1} ',
    b'{"a":1,"a":2}',
    b'{"a":-0,"b":1E5,"c":1e-7,"d":1e999,"e":[[],{},null,true,false]}',
    b'{"a":"\\ud83d\\ude00"}',
    b'{"a":"\\ud83d"}',
    b'{"a":"\\uDE00 second half first"}',
    b'{"\\ud800":1}',
    b'{"a":"\x7f"}',
    '{"ü":"\u2028\x85\N{WATER WAVE}"}'.encode(),
    b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
]

OTHERS = [
    *(b"", b" ", b"{", b"}", b"[]", b"1", b'"x"', b"null", b"[DONE]", b"{}{}", b"{} x", b"{}\x00", b"\x00{}"),
    *(b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":nan}'),
    *(b'{"a":01}', b'{"a":-01}', b'{"a":1.}', b'{"a":.5}', b'{"a":1e}', b'{"a":+1}', b'{"a":-}', b'{"a":0x1}'),
    *(b'{"a":1.2.3}', b'{"a":1-1}', b'{"a":1_0}', b'{"a":1 2}', b'{"a":[1 2]}', b'{"a":[1,]}', b'{"a":1,}'),
    *(b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a"::1}', b"{,}", b'{"a":1,,"b":2}', b"{a:1}", b"{'a':1}", b"{1:1}"),
    *(b'{"a":"\x01"}', b'{"a":"\n"}', b'{"a":"\t"}', b'{"a":"\x00"}', b'{"a":"\\x"}', b'{"a":"\\u12"}', b'{"a":"\\"}'),
    *(b'{"a":tru}', b'{"a":nullx}', b'{"a":truefalse}', b'{"a":]}', b'{"a":[}]}', b'{"a":"b}', b'{"a":1'),
    *(b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\x80"}', b'{"a":"\xf4\x90\x80\x80"}', b'{"\xff":1}'),
    *(b'{"a":1}\xff', b"\xef\xbb\xbf{}", b'{"a":\xc2\xa01}', b'{"a":\x0c1}', b'{"a":/**/1}', b"{}//"),
    *(b'{"a":"\\ud800"', b'{"a":"\\ud800",}', b'{"a":"\\ud800","b":NaN}', b'["\\ud800"]', b'{"a":"\\ud80"}'),
]


@pytest.mark.parametrize("data", OBJECTS)
def test_one_object_is_one(data: bytes) -> None:
    assert is_json_object(data)
    assert is_object_to_python(data)


@pytest.mark.parametrize("data", OTHERS)
def test_anything_else_is_none(data: bytes) -> None:
    assert not is_json_object(data)
    assert not splices(data)
    assert not is_object_to_python(data)


@pytest.mark.parametrize("depth", [5_000, 200_000])
@pytest.mark.parametrize("brackets", [b"[]", b'{"a":}'])
def test_nesting_without_end_is_refused_and_not_fatal(brackets: bytes, depth: int) -> None:
    opening, closing = brackets[:-1], brackets[-1:]
    assert not is_json_object(b'{"a":' + opening * depth + b"1" + closing * depth + b"}")


WORDS = ["\\u", "d83d", "true", "null", "NaN", '"a"', '{"a":', "\n", "\x00", "ü", "\u2028"]
PIECES = st.sampled_from([*'"\\{}[]:, a1-.e0', *WORDS, *string.whitespace])


@any_example
@given(st.lists(PIECES, max_size=12).map("".join))
def test_what_is_made_of_jsons_pieces_is_judged_as_python_does(text: str) -> None:
    for data in (text.encode(), b'{"a":' + text.encode() + b"}"):
        assert is_json_object(data) == is_object_to_python(data)


@any_example
@given(st.binary(max_size=8))
def test_any_bytes_in_a_string_are_judged_as_python_does(inner: bytes) -> None:
    data = b'{"a":"' + inner + b'"}'
    assert is_json_object(data) == is_object_to_python(data)


@any_example
@given(st.dictionaries(st.text(max_size=3), st.none() | st.floats() | st.text(max_size=8) | st.lists(st.integers())))
def test_what_splices_is_one_line_that_python_reads(value: dict[str, object]) -> None:
    data = json.dumps(value).encode()
    assert splices(data) == is_object_to_python(data)
    assert not splices(json.dumps(value, indent=1).encode()) or not value


@pytest.mark.parametrize("data", [b'{"a":\n1}', b'{\r"a":1}', '{"a":"ü"}'.encode(), b'{"a":"\\ud83d"}'])
def test_an_object_that_needs_a_closer_look_does_not_splice_at_once_but_has_a_payload(data: bytes) -> None:
    assert not splices(data)
    payload = object_payload(data, known=True)
    assert payload is not None
    assert json.loads(payload) == json.loads(data)
    assert b"\n" not in payload
    assert b"\r" not in payload


def test_an_object_is_its_own_payload() -> None:
    data = b'{"a":"b"}'
    assert object_payload(data, known=True) is data
    assert object_payload(data, known=False) is data


@pytest.mark.parametrize("data", [b'{"a":NaN}', b"{}{}", b'{"a":1},"type":"done"', b"[1]", b"ping", "ü".encode()])
def test_what_is_no_object_has_no_place_in_a_known_protocol_and_is_quoted_in_others(data: bytes) -> None:
    assert object_payload(data, known=True) is None
    quoted = object_payload(data, known=False)
    assert quoted is not None
    assert json.loads(quoted) == {"raw": data.decode()}


@pytest.mark.parametrize("known", [True, False])
def test_bytes_that_are_no_utf8_are_written_out_in_any_protocol(known: bool) -> None:
    payload = object_payload(b'{"a":"\xff"}', known=known)
    assert payload is not None
    assert json.loads(payload) == {"raw": '{"a":"\\xff"}'}


def test_lines_become_one_before_they_are_judged() -> None:
    assert object_payload(b'{"a":"two\nlines"}', known=True) == b'{"a":"two lines"}'
