"""What the gateway says in Responses' WebSocket mode, as its clients read it; and whose lane a frame is in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseCompletedEvent, ResponseCreatedEvent
from openai.types.responses.responses_server_event import ResponseWsError

from proxy.errors import InvalidRequest, Unavailable
from proxy.streams.conversations import PreviousResponseNotFound
from proxy.wire.responses_frames import (
    error_payload,
    in_lane,
    lane_member,
    refusal_payload,
    told_in_events,
    warm_up_payloads,
)

if TYPE_CHECKING:
    from proxy.errors import GatewayError

# ---- lanes ----


@pytest.mark.parametrize(
    ("payload", "framed"),
    [
        (b'{"a":1}', b'{"a":1,"stream_id":"main"}'),
        (b'{"a":1} \n ', b'{"a":1,"stream_id":"main"}'),
        (b'{"a":{} }', b'{"a":{},"stream_id":"main"}'),
        (b'{"a":"{"}', b'{"a":"{","stream_id":"main"}'),
        (b"{}", b'{"stream_id":"main"}'),
        (b" { \t } ", b' {"stream_id":"main"}'),
        (b'{"stream_id":"forged","a":[]}', b'{"stream_id":"forged","a":[],"stream_id":"main"}'),
    ],
)
def test_the_lane_is_the_last_member(payload: bytes, framed: bytes) -> None:
    assert in_lane(payload, lane_member("main")) == framed


def test_the_lane_without_a_name_adds_nothing() -> None:
    payload = b'{ "a": 1 } '
    assert in_lane(payload, lane_member(None)) is payload


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.none()) | st.dictionaries(st.text(), st.none())),
    st.none() | st.integers(0, 4),
)
def test_whatever_an_object_says_its_lane_is_ours(said: dict[str, object], indent: int | None) -> None:
    written = json.dumps(said, indent=indent).encode()
    assert json.loads(in_lane(written, lane_member("main"))) == {**said, "stream_id": "main"}


# ---- errors ----


def as_the_sdk_reads(payload: bytes) -> ResponseWsError:
    return ResponseWsError.model_validate_json(payload)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            PreviousResponseNotFound("Gone.", param="previous_response_id"),
            b'{"type":"error","status":400,"error":{"type":"invalid_request_error",'
            b'"code":"previous_response_not_found","message":"Gone.","param":"previous_response_id"}}',
        ),
        (
            Unavailable("All busy.", retry_after_s=1.2),
            b'{"type":"error","status":503,"error":{"type":"server_error","code":"no_replica_available",'
            b'"message":"All busy.","param":null},"headers":{"retry-after":"2"}}',
        ),
    ],
)
def test_our_errors_are_the_documented_bytes(error: GatewayError, expected: bytes) -> None:
    assert error_payload(error) == expected
    assert as_the_sdk_reads(expected).status == error.status


def test_a_named_lanes_error_ends_with_its_name() -> None:
    payload = in_lane(error_payload(InvalidRequest("No.")), lane_member("a"))
    assert payload.endswith(b'"param":null},"stream_id":"a"}')
    assert as_the_sdk_reads(payload).stream_id == "a"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {"message": "m", "type": "t", "code": "c", "param": "p"},
            {"message": "m", "type": "t", "code": "c", "param": "p"},
        ),
        ({}, {"type": "upstream_error", "code": None, "message": "", "param": None}),
        (
            {"object": "error", "message": None, "code": 404, "param": ["a"]},
            {"object": "error", "type": "upstream_error", "code": "404", "message": "", "param": '["a"]'},
        ),
        (
            {"type": "usage_limit_reached", "message": "m", "resets_at": 17},
            {"type": "usage_limit_reached", "code": None, "message": "m", "param": None, "resets_at": 17},
        ),
        ({"message": "m", "odd": float("nan")}, {"type": "upstream_error", "code": None, "message": "", "param": None}),
    ],
)
def test_an_upstreams_error_has_texts_where_codex_wants_texts(said: dict[str, object], told: object) -> None:
    frame = json.loads(refusal_payload(said, 429, "Wed, 21 Oct 2026 07:28:00 GMT"))
    assert frame == {
        "type": "error",
        "status": 429,
        "error": told,
        "headers": {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"},
    }


# ---- responses of our own making ----


def test_a_warm_up_is_a_response_without_output() -> None:
    created, completed = (json.loads(payload) for payload in warm_up_payloads("resp_1", "m", 1_800_000_000))
    begun = ResponseCreatedEvent.model_validate(created).response
    assert (begun.id, begun.status, begun.model, begun.created_at) == ("resp_1", "in_progress", "m", 1_800_000_000)
    ended = ResponseCompletedEvent.model_validate(completed)
    assert (ended.sequence_number, ended.response.status, ended.response.output) == (1, "completed", [])
    assert ended.response.usage is not None
    assert ended.response.usage.total_tokens == 0


def test_a_response_in_one_piece_is_told_in_the_fewest_events() -> None:
    response = {"id": "resp_1", "status": "completed", "output": [{"type": "a"}, {"type": "b"}], "usage": {"x": 1}}
    events = [json.loads(event) for event in told_in_events(response)]
    assert events == [
        {
            "type": "response.created",
            "sequence_number": 0,
            "response": {"id": "resp_1", "status": "in_progress", "output": []},
        },
        {"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": {"type": "a"}},
        {"type": "response.output_item.done", "sequence_number": 2, "output_index": 1, "item": {"type": "b"}},
        {"type": "response.completed", "sequence_number": 3, "response": response},
    ]


def test_an_incomplete_response_in_one_piece_ends_so() -> None:
    *_, last = told_in_events({"id": "r", "status": "incomplete", "output": None})
    assert json.loads(last)["type"] == "response.incomplete"
