"""The body: refused with a reason, read without being kept, edited without being rebuilt."""

from __future__ import annotations

import json
import string
import sys
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import InvalidRequest
from proxy.request import OPENING_BYTES, RequestBody
from proxy.wire.json_members import MOST_MEMBERS

CHAT = b'{"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": true}'


def refusal(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        RequestBody.parse(raw)
    return caught.value


# ---- what is read ----


def test_model_and_stream_are_read() -> None:
    body = RequestBody.parse(CHAT)
    assert (body.raw, body.model, body.stream) == (CHAT, "chat", True)


@pytest.mark.parametrize("raw", [b'{"model":"m"}', b'{"model":"m","stream":false}', b'{"model":"m","stream":null}'])
def test_nobody_streams_unasked(raw: bytes) -> None:
    assert RequestBody.parse(raw).stream is False


def test_blanks_may_stand_wherever_json_has_them() -> None:
    body = RequestBody.parse(b' \r\n\t{ \n"model"\t:\r"m" , "n" : 3\n}\n\n')
    assert (body.model, body.value("n")) == ("m", 3)


def test_a_value_is_decoded_when_it_is_asked_for() -> None:
    body = RequestBody.parse('{"model":"m","n":2,"stop":["é","\\u00e9"],"user":null,"x":1e400}'.encode())
    assert body.value("n") == 2
    assert body.value("stop") == ["é", "é"]
    assert body.value("user", "nobody") is None
    assert body.value("x") == float("inf")
    assert body.value("seed", 7) == 7


def test_names_are_what_they_say_however_they_are_written() -> None:
    body = RequestBody.parse('{"m\\u006fdel":"m","größe":1,"gr\\u00f6sse":2,"模型":3}'.encode())
    assert body.model == "m"
    assert [body.value(name) for name in ("größe", "grösse", "模型")] == [1, 2, 3]


@pytest.mark.parametrize("model", ["größe", "模型", "\U0001f40b", "caf\u00e9"])
def test_a_models_name_is_what_it_says_however_it_is_written(model: str) -> None:
    for ensure_ascii in (True, False):
        raw = json.dumps({"prompt": "é", "model": model}, ensure_ascii=ensure_ascii).encode()
        assert RequestBody.parse(raw).model == model


def test_only_top_level_members_count() -> None:
    body = RequestBody.parse(b'{"metadata":{"model":"inner","stream":true,"n":9},"model":"outer"}')
    assert (body.model, body.stream, body.value("n")) == ("outer", False, None)


def test_the_body_is_not_in_its_repr() -> None:
    assert "hi" not in repr(RequestBody.parse(CHAT))


# ---- what is refused ----


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"null",
        b'"model"',
        b'[{"model":"m"}]',
        b'{"model":"m"',
        b'{"model":"m",}',
        b'{,"model":"m"}',
        b'{"model" "m"}',
        b'{"model":}',
        b'{"model":"m" "n":1}',
        b"{model:1}",
        b"{'model':'m'}",
        b'{"model":"m"} {}',
        b'{"model":"m"}x',
        b'{"model":"m"}\0',
        b'{"model":"m"}\xc2\xa0',
        b'{"model":"m"\xc2\xa0}',
        b'\xc2\x85{"model":"m"}',
        b'\xef\xbb\xbf{"model":"m"}',
        b'{"model":"m","x":NaN}',
        b'{"model":"m","x":[-Infinity]}',
        b'{"model":"m","x":Infinity}',
        b'{"model":"m","x":01}',
        b'{"model":"m","x":1.}',
        b'{"model":"m","x":tru}',
        b'{"model":"m","x":"\n"}',
        b'{"model":"m","x":"\\x41"}',
        b'{"model":"m","x":"\xff"}',
        b'{"model":"m","x":"\xc3"}',
        b'{"model":"m","x":"\xed\xa0\x80"}',
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"m"}'.decode().encode("utf-32-le"),
        b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","x":' + b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    error = refusal(raw)
    assert (error.status, error.code, error.param) == (400, "invalid_json", None)
    assert error.__suppress_context__  # which would show where, and what byte


@pytest.mark.parametrize(
    "raw", [b"{}", b" { } ", b'{"modell":"m"}', b'{"model":""}', b'{"model":null}', b'{"model":1}']
)
def test_a_model_must_be_named(raw: bytes) -> None:
    error = refusal(raw)
    assert (error.code, error.param) == ("missing_model", "model")


@pytest.mark.parametrize("stream", [b"1", b"0", b'"true"', b"[]", b"{}"])
def test_stream_is_yes_or_no(stream: bytes) -> None:
    error = refusal(b'{"model":"m","stream":' + stream + b"}")
    assert (error.code, error.param) == ("invalid_request", "stream")


@pytest.mark.parametrize("name", ["model", "stream", "stream_options", "n", "prompt"])
def test_a_member_the_gateway_reads_stands_there_once(name: str) -> None:
    error = refusal(b'{"model":"m","%b":null,"x":{},"%b":null}' % (name.encode(), name.encode()))
    assert (error.code, error.param) == ("invalid_request", name)
    assert "two" in error.message


def test_a_second_member_is_seen_through_its_spelling() -> None:
    assert refusal(b'{"model":"cheap","\\u006dodel":"dear"}').param == "model"


def test_other_members_may_stand_there_twice() -> None:
    body = RequestBody.parse(b'{"x":1,"model":"m","x":2,"y":{"model":1,"model":2}}')
    assert body.value("x") == 2


def test_a_flood_of_members_is_refused() -> None:
    members = [b'"%d":0' % number for number in range(MOST_MEMBERS)]
    assert RequestBody.parse(b'{"model":"m",' + b",".join(members[1:]) + b"}").value("1") == 0
    assert refusal(b'{"model":"m",' + b",".join(members) + b"}").code == "invalid_request"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":["canary"]}',
        b'canary{"model":"m"}',
        b'{"model":"m","stream":"canary"}',
        b'{"canary":1,"canary":\xff}',
    ],
)
def test_a_refusal_repeats_nothing_of_the_body(raw: bytes) -> None:
    error = refusal(raw)
    assert "canary" not in "".join(traceback.format_exception(error))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from there on C has a stack limit of its own")
def test_a_number_too_long_for_us_passes_and_is_refused_where_we_need_it() -> None:
    raw = b'{"model":"m","x":' + b"9" * (sys.get_int_max_str_digits() + 1) + b"}"
    body = RequestBody.parse(raw)
    assert body.replaced({"stream": True}).endswith(raw[1:])
    with pytest.raises(InvalidRequest):
        body.value("x")


def test_nesting_that_fits_only_while_parsing_is_refused_later() -> None:
    def deeper(levels: int) -> object:
        return deeper(levels - 1) if levels else body.value("x")

    body = RequestBody.parse(b'{"model":"m","x":' + b"[" * 500 + b"]" * 500 + b"}")
    room = sys.getrecursionlimit() - 300
    with pytest.raises(InvalidRequest, match="nested"):
        deeper(room)


# ---- what is changed ----


def test_members_are_replaced_where_they_stand() -> None:
    body = RequestBody.parse(b'{ "temperature" : 1.0e0,"model":"chat" , "x":"\\u00e9\\/" }')
    assert body.replaced({"model": "llama"}) == b'{ "temperature" : 1.0e0,"model":"llama" , "x":"\\u00e9\\/" }'


def test_absent_members_are_put_in_front() -> None:
    raw = b'{\n  "model": "m"\n}'
    changed = RequestBody.parse(raw).replaced({"stream": True, "stream_options": {"include_usage": True}})
    assert changed == b'{"stream":true,"stream_options":{"include_usage":true},\n  "model": "m"\n}'


def test_nothing_changes_without_changes() -> None:
    assert RequestBody.parse(CHAT).replaced({}) == CHAT


def test_the_pieces_of_a_change_are_what_is_changed() -> None:
    body = RequestBody.parse(CHAT)
    for changes in ({"model": "llama", "n": 1}, {"n": 1}, {}):
        assert b"".join(body.pieces(changes)) == body.replaced(changes)


@pytest.mark.parametrize(
    ("value", "opening"),
    [
        (b'"gateway"', b'"gateway"'),
        (b"[1, 2]", b"[1, 2]"),
        (b"null", b"null"),
        (b'"' + b"x" * 1000 + b'"', b'"' + b"x" * (OPENING_BYTES - 1)),
        (b'1,"tools":[2]', b"[2]"),
    ],
)
def test_how_a_value_begins_is_seen_without_the_rest(value: bytes, opening: bytes) -> None:
    body = RequestBody.parse(b'{"stream":true,"model":"m","x":' + value.replace(b"tools", b"x") + b',"y":7}')
    assert body.opening("x") == opening
    assert body.opening("z") == b""


def test_what_is_written_is_ascii_whatever_it_says() -> None:
    changed = RequestBody.parse('{"model":"m","é":"é"}'.encode()).replaced({"model": 'ß"\ud800'})
    assert changed == b'{"model":"\\u00df\\"\\ud800","\xc3\xa9":"\xc3\xa9"}'


def test_a_member_that_stands_there_twice_is_replaced_twice() -> None:
    assert RequestBody.parse(b'{"x":1,"model":"m","x":2}').replaced({"x": 3}) == b'{"x":3,"model":"m","x":3}'


def test_a_value_in_bytes_is_written_as_it_is() -> None:
    assert RequestBody.parse(b'{"model":"m","x":1}').replaced({"x": b"1e400", "y": b"[ ]"}) == (
        b'{"y":[ ],"model":"m","x":1e400}'
    )


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (None, b'{"usage":true}'),
        (b"null", b'{"usage":true}'),
        (b"{}", b'{"usage":true}'),
        (b"{ \n}", b'{"usage":true \n}'),
        (b'{ "usage" : false }', b'{ "usage" : true }'),
        (b'{"x":1e400, "\xc3\xa9":"\\/"}', b'{"usage":true,"x":1e400, "\xc3\xa9":"\\/"}'),
        (b'{"us\\u0061ge":null,"x":{"usage":0}}', b'{"us\\u0061ge":true,"x":{"usage":0}}'),
        (b'{"usage":false,"usage":null}', b'{"usage":true,"usage":true}'),
    ],
)
def test_an_object_within_is_changed_as_the_body_is(options: bytes | None, changed: bytes) -> None:
    given = b"" if options is None else b',"options":' + options
    body = RequestBody.parse(b'{"model":"m"' + given + b"}")
    assert body.object_with("options", {"usage": True}) == changed


@pytest.mark.parametrize("options", [b"[]", b'"{}"', b"1", b"true"])
def test_what_is_no_object_within_cannot_be_changed(options: bytes) -> None:
    with pytest.raises(InvalidRequest):
        RequestBody.parse(b'{"model":"m","options":' + options + b"}").object_with("options", {"usage": True})


def test_a_flood_of_members_within_is_refused() -> None:
    options = b"{" + b",".join([b'"%d":0' % number for number in range(MOST_MEMBERS + 1)]) + b"}"
    body = RequestBody.parse(b'{"model":"m","options":' + options + b"}")
    with pytest.raises(InvalidRequest, match="members"):
        body.object_with("options", {"usage": True})


blanks = st.text(" \t\r\n", max_size=3).map(str.encode)
values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.text(max_size=6) | st.sampled_from(["n", "tools", "größe", "模型"])


@st.composite
def written(draw: st.DrawFn, value: st.SearchStrategy[object]) -> bytes:
    """A value as some client might write it."""
    dumped = json.dumps(
        draw(value), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])), allow_nan=False
    )
    # A lone surrogate can only be written escaped.
    return b"".join(
        json.dumps(character)[1:-1].encode() if "\ud800" <= character <= "\udfff" else character.encode()
        for character in dumped
    )


@st.composite
def bodies_and_changes(draw: st.DrawFn) -> tuple[bytes, dict[str, object], bytes]:
    """A body, changes to it, and what it should then be, put together from the same pieces."""
    members: dict[str, bytes] = draw(st.dictionaries(names, written(values), max_size=4))
    members["model"] = draw(written(st.text(min_size=1, max_size=8)))
    order = draw(st.permutations(list(members)))
    changes: dict[str, object] = draw(
        st.dictionaries(st.sampled_from(order) | st.sampled_from(["stream", "added"]), values, max_size=3)
    )
    before, after = b"", b""
    for name in order:
        comma = b"," if before else b""
        around = comma + draw(blanks) + draw(written(st.just(name))) + draw(blanks) + b":" + draw(blanks)
        end = draw(blanks)
        replaced = json.dumps(changes[name], separators=(",", ":")).encode() if name in changes else members[name]
        before += around + members[name] + end
        after += around + replaced + end
    front = b"".join(
        json.dumps({name: value}, separators=(",", ":")).encode()[1:-1] + b","
        for name, value in changes.items()
        if name not in members
    )
    lead, trail = draw(blanks), draw(blanks)
    return lead + b"{" + before + b"}" + trail, changes, lead + b"{" + front + after + b"}" + trail


@settings(deadline=None, max_examples=50)
@given(bodies_and_changes())
def test_replacing_moves_no_other_byte(case: tuple[bytes, dict[str, object], bytes]) -> None:
    raw, changes, expected = case
    if json.loads(raw).get("stream") not in (None, True, False):
        return
    changed = RequestBody.parse(raw).replaced(changes)
    assert changed == expected
    assert json.loads(changed) == {**json.loads(raw), **changes}


@settings(deadline=None, max_examples=50)
@given(bodies_and_changes())
def test_every_value_is_the_one_json_reads(case: tuple[bytes, dict[str, object], bytes]) -> None:
    body = RequestBody.parse(case[0])
    decoded = json.loads(case[0])
    assert {name: body.value(name) for name, _, _ in body.members} == decoded
    assert body.model == decoded["model"]


@settings(deadline=None)
@given(
    st.text(alphabet=string.printable + "é模\ud800", max_size=30),
    st.integers(0, 60),
    st.sampled_from([b"", b"}", b'"']),
)
def test_what_json_refuses_is_refused(noise: str, at: int, instead: bytes) -> None:
    raw = b'{"model":"m","x":[1,{"y":"z"}],"w":-2.5e1,"v":null}'
    spoilt = raw[:at] + noise.encode("utf-8", "surrogatepass") + instead + raw[at + 1 :]
    try:
        value = json.loads(spoilt.decode(), parse_constant=lambda name: json.loads("?"))
    except ValueError:
        assert refusal(spoilt).code == "invalid_json"
    else:
        if isinstance(value, dict) and isinstance(value.get("model"), str) and value["model"] and "stream" not in value:
            assert RequestBody.parse(spoilt).model == value["model"]
