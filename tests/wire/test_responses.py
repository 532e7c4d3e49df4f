"""What a client says in Responses' WebSocket mode: as the SDKs and Codex say it, and everything that is not it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.responses import BadMessage, Cancel, Create, Processed, parse_message
from tests.support.responses import CODEX_REQUEST

if TYPE_CHECKING:
    from proxy.wire.responses import Message


def parsed(**members: Any) -> Message:
    return parse_message(json.dumps({"type": "response.create", **members}))


def body(message: Message) -> Any:
    assert isinstance(message, Create)
    return json.loads(message.body())


def test_the_body_is_the_request_as_it_would_be_over_http() -> None:
    message = parsed(model="m", input=[{"role": "user", "content": "é"}], tools=[], temperature=0.5)
    assert body(message) == {
        "model": "m",
        "input": [{"role": "user", "content": "é"}],
        "tools": [],
        "temperature": 0.5,
        "stream": True,
    }


def test_what_is_about_the_connection_does_not_go_on() -> None:
    message = parsed(
        model="m",
        stream=False,
        background=True,
        stream_id="main",
        event_id="e1",
        generate=True,
        previous_response_id="resp_1",
    )
    assert message == Create("main", {"model": b'"m"'}, "resp_1")
    assert body(message) == {"model": "m", "stream": True}


@pytest.mark.parametrize("value", [0, "yes", [], None])
def test_stream_and_background_are_ignored_whatever_they_say(value: object) -> None:
    assert body(parsed(model="m", stream=value, background=value)) == {"model": "m", "stream": True}


def test_the_request_may_be_nested() -> None:
    request = {"model": "m", "input": "hi", "previous_response_id": "resp_1", "generate": False}
    flat = parsed(**request, stream_id="main")
    assert parsed(response=request, stream_id="main") == flat
    assert parsed(response={**request, "stream_id": "main"}) == flat
    assert parsed(response={**request, "stream_id": "main", "type": "x"}, stream_id="other") == flat


def test_values_are_not_written_anew() -> None:
    message = parse_message('{"type":"response.create","model":"m","x": {"a":1.50, "b":[ 1e2 ]},"y":"\\u00e9\\ud83d"}')
    assert isinstance(message, Create)
    assert message.body() == (b'{"model":"m","x":{"a":1.50, "b":[ 1e2 ]},"y":"\\u00e9\\ud83d","stream":true}')
    assert message.body(model=b'"n"').startswith(b'{"model":"n","x":')


def test_of_a_member_that_is_there_twice_the_last_counts_for_us_and_for_the_model_server() -> None:
    message = parse_message('{"type":"response.create","model":"a","model":"m","stream":false,"stream":false}')
    assert isinstance(message, Create)
    assert message.body() == b'{"model":"m","stream":true}'


def test_what_codex_sends_goes_on_but_for_the_connections_own() -> None:
    message = parse_message(json.dumps(CODEX_REQUEST))
    assert isinstance(message, Create)
    assert (message.stream_id, message.previous_response_id, message.generate) == (None, "resp_0", False)
    own = {"type", "previous_response_id", "generate"}
    assert body(message) == {name: value for name, value in CODEX_REQUEST.items() if name not in own}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"type": "response.cancel"}, Cancel(None)),
        ({"type": "response.cancel", "stream_id": "a.b-c_1"}, Cancel("a.b-c_1")),
        ({"type": "response.cancel", "response_id": "resp_1", "event_id": 3}, Cancel(None, "resp_1")),
        ({"type": "response.processed", "response_id": "resp_1"}, Processed()),
        (
            {"type": "response.create", "stream_id": None, "generate": None, "previous_response_id": None},
            Create(None, {}),
        ),
        ({"type": "response.create", "stream_id": "x" * 256}, Create("x" * 256, {})),
    ],
)
def test_a_message_is_read(said: object, message: Message) -> None:
    assert parse_message(json.dumps(said, indent=1)) == message


BAD: dict[str, tuple[str, str, str | None, str | None]] = {
    "nothing": ("", "invalid_json", None, None),
    "no JSON": ("{canary", "invalid_json", None, None),
    "a list": ('["canary"]', "invalid_json", None, None),
    "two objects": ('{"type":"response.create"}{}', "invalid_json", None, None),
    "no number of JSON's": ('{"type":"response.create","x":NaN}', "invalid_json", None, None),
    "too deep": ('{"x":' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json", None, None),
    "no type": ('{"model":"canary"}', "invalid_request", "type", None),
    "another type": ('{"type":"canary","stream_id":"a"}', "invalid_request", "type", "a"),
    "steering": ('{"type":"response.steer","input":"canary"}', "invalid_request", "type", None),
    "a type that is no text": ('{"type":{"a":1}}', "invalid_request", "type", None),
    "a lane without letters": ('{"type":"response.create","stream_id":""}', "invalid_stream_id", "stream_id", None),
    "a lane with a blank": (
        '{"type":"response.create","stream_id":"a canary"}',
        "invalid_stream_id",
        "stream_id",
        None,
    ),
    "a lane with a line end": ('{"type":"response.create","stream_id":"a\\n"}', "invalid_stream_id", "stream_id", None),
    "a lane beyond ASCII": ('{"type":"response.create","stream_id":"é"}', "invalid_stream_id", "stream_id", None),
    "a long lane": (
        '{"type":"response.cancel","stream_id":"%s"}' % ("x" * 257),
        "invalid_stream_id",
        "stream_id",
        None,
    ),
    "a lane that is a number": ('{"type":"response.create","stream_id":1}', "invalid_stream_id", "stream_id", None),
    "a nested list": ('{"type":"response.create","response":["canary"]}', "invalid_json", None, None),
    "generate: a number": (
        '{"type":"response.create","stream_id":"a","generate":0}',
        "invalid_request",
        "generate",
        "a",
    ),
    "previous: a number": (
        '{"type":"response.create","previous_response_id":7}',
        *("invalid_request", "previous_response_id", None),
    ),
    "cancel what": ('{"type":"response.cancel","response_id":[]}', "invalid_request", "response_id", None),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_message_is_refused_in_words_that_repeat_nothing(case: str) -> None:
    said, code, param, stream_id = BAD[case]
    with pytest.raises(BadMessage) as refused:
        parse_message(said)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)
    assert refused.value.stream_id == stream_id
    assert "canary" not in refused.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["type", "stream_id", "response", "generate", "previous_response_id", "response_id", "model", "input", "stream"]
)
VALUES = JSON | st.sampled_from(["response.create", "response.cancel", "response.processed", "main"])


@given(st.dictionaries(NAMES | st.text(), VALUES))
def test_any_object_is_a_message_or_refused(said: dict[str, object]) -> None:
    try:
        message = parse_message(json.dumps(said))
    except BadMessage:
        return
    if isinstance(message, Create):
        assert body(message)["stream"] is True


@given(st.text())
def test_any_text_is_a_message_or_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        parse_message(text)
