"""What the gateway says: the protocol's examples byte for byte, and that nothing upstream can say it instead."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import NotFound, RequestInProgress, Unavailable
from proxy.wire import mux_frames
from proxy.wire.json_object import object_payload
from proxy.wire.mux_frames import MOST_NAMES, Ending, Envelope, Form, refusal
from tests.support.hostile_data import HOSTILE_DATA

CHUNK = b'{"id":"chatcmpl-1","choices":[{"delta":{"content":"a"}}]}'


@pytest.mark.parametrize(
    ("form", "name", "expected"),
    [
        (
            Form.CHUNKS,
            b"",
            b'{"data":{"chunk":%b,"stage_id":"r1"},"type":"chat_completion_chunk","rid":"r1","seq":1}',
        ),
        (
            Form.EVENTS,
            b"response.output_text.delta",
            b'{"data":{"chunk":%b,"stage_id":"r1"},"type":"event","event":"response.output_text.delta","rid":"r1","seq":1}',
        ),
        (
            Form.EVENTS,
            b"",
            b'{"data":{"chunk":%b,"stage_id":"r1"},"type":"event","event":"message","rid":"r1","seq":1}',
        ),
        (
            Form.STAGES,
            b"tool_completion_chunk",
            b'{"data":{"tool_results":%b,"stage_id":"r1"},"type":"tool_completion_chunk","rid":"r1","seq":1}',
        ),
        (
            Form.STAGES,
            b"tool_summary",
            b'{"data":{"tool_summary":%b,"stage_id":"r1"},"type":"tool_summary","rid":"r1","seq":1}',
        ),
        (Form.RESULT, b"", b'{"data":{"result":%b,"stage_id":"r1"},"type":"result","rid":"r1","seq":1}'),
    ],
)
def test_a_streams_frame_is_the_protocols_example(form: Form, name: bytes, expected: bytes) -> None:
    assert Envelope("r1", "r1", form).payload(CHUNK, name, 1) == expected % CHUNK


def test_a_resumed_stream_keeps_its_stage_under_a_new_rid() -> None:
    frame = json.loads(Envelope("r9", 'first "one"', Form.CHUNKS).payload(CHUNK, b"", 42))
    assert frame == {
        "data": {"chunk": json.loads(CHUNK), "stage_id": 'first "one"'},
        "type": "chat_completion_chunk",
        "rid": "r9",
        "seq": 42,
    }


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (
            Ending.done({"prompt_tokens": 3}),
            b'{"data":{"stage_id":"s","usage":{"prompt_tokens":3}},"type":"done","rid":"r1","seq":42}',
        ),
        (Ending.done(None), b'{"data":{"stage_id":"s"},"type":"done","rid":"r1","seq":42}'),
        (
            Ending.cancelled("client"),
            b'{"data":{"stage_id":"s","reason":"client"},"type":"cancel","rid":"r1","seq":42}',
        ),
        (
            Ending.failed(Unavailable("busy", retry_after_s=2)),
            b'{"data":{"error":{"message":"busy","type":"server_error","param":null,"code":"no_replica_available"},'
            b'"stage_id":"s"},"type":"error","rid":"r1","seq":42,"status":503,"retry_after_ms":2000}',
        ),
        (
            Ending.refused({"message": "no", "stage_id": "x", "type": "done"}, 429, 0.25),
            b'{"data":{"error":{"message":"no","stage_id":"x","type":"done"},"stage_id":"s"},'
            b'"type":"error","rid":"r1","seq":42,"status":429,"retry_after_ms":250}',
        ),
    ],
)
def test_a_terminal_frame_is_the_protocols_example(ending: Ending, expected: bytes) -> None:
    assert Envelope("r1", "s", Form.CHUNKS).terminal(ending, 42) == expected


def test_a_refusal_is_no_part_of_a_stream() -> None:
    error = NotFound("none", code="stream_not_found")
    told = {"message": "none", "type": "invalid_request_error", "param": None, "code": "stream_not_found"}
    assert json.loads(refusal(error)) == {"data": {"error": told}, "type": "error", "status": 404}
    assert json.loads(refusal(error, rid="r1", oldest=7)) == {
        "data": {"error": told},
        "type": "error",
        "rid": "r1",
        "status": 404,
        "oldest": 7,
    }
    assert json.loads(refusal(RequestInProgress("twice", code="rid_in_use"), about="r1"))["about"] == "r1"


def test_what_is_said_of_the_connection_is_the_protocols_example() -> None:
    assert mux_frames.ready("c_7f", ["ack"], 25, {"streams": 16}) == (
        b'{"type":"ready","v":1,"conn":"c_7f","features":["ack"],"heartbeat_s":25,"limits":{"streams":16}}'
    )
    assert mux_frames.queued("r1", 3) == b'{"type":"queued","rid":"r1","position":3}'
    assert mux_frames.accepted("r1", "s_9", "chat", 200, "req_1") == (
        b'{"type":"accepted","rid":"r1","stream":"s_9","model":"chat","status":200,"request_id":"req_1"}'
    )
    assert b"stream" not in mux_frames.accepted("r1", None, "chat", 200, "req_1")
    assert mux_frames.resumed("r1", "s_9", first=42, head=57, live=True) == (
        b'{"type":"resumed","rid":"r1","stream":"s_9","from":42,"head":57,"live":true}'
    )
    assert mux_frames.ping(1) == b'{"type":"ping","t":1}'
    assert mux_frames.pong("x") == b'{"type":"pong","t":"x"}'
    assert mux_frames.goaway("drain", 30000, 1500) == (
        b'{"type":"goaway","reason":"drain","in_ms":30000,"reconnect_ms":1500}'
    )


# ---- nothing upstream changes what the gateway vouches for ----


def assert_not_forged(payload: bytes, form: Form) -> None:
    assert b"\n" not in payload
    frame = json.loads(payload.decode())
    type = "tool_summary" if form is Form.STAGES else form.value
    assert (frame["type"], frame["rid"], frame["seq"]) == (type, "r1", 7)
    assert set(frame) == {"data", "type", "rid", "seq"} | ({"event"} if form is Form.EVENTS else set())
    assert frame["data"]["stage_id"] == "mine"
    member = {Form.RESULT: "result", Form.STAGES: "tool_summary"}.get(form, "chunk")
    assert set(frame["data"]) == {"stage_id", member}


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("data", HOSTILE_DATA)
def test_hostile_data_changes_nothing_of_the_envelope(data: bytes, known: bool, form: Form) -> None:
    payload = object_payload(data, known=known)
    if payload is not None:
        name = b"tool_summary" if form is Form.STAGES else b"x"
        assert_not_forged(Envelope("r1", "mine", form).payload(payload, name, 7), form)


any_example = settings(derandomize=True, database=None, deadline=None)
PIECES = st.sampled_from([*'"\\{}[]:, 1', '"type"', '"done"', '"rid"', '"seq":99', '"a":', "{}", "\n", "\xff", "ü"])


@any_example
@given(st.lists(PIECES, max_size=20).map("".join), st.sampled_from(["utf-8", "latin-1"]), st.booleans())
def test_nor_does_anything_made_of_its_pieces(text: str, encoding: str, known: bool) -> None:
    payload = object_payload(b"{" + text.encode(encoding) + b"}", known=known)
    if payload is not None:
        assert_not_forged(Envelope("r1", "mine", Form.CHUNKS).payload(payload, b"", 7), Form.CHUNKS)


@pytest.mark.parametrize(
    "name", [b'","rid":"r2', b'"}', b"\\", b"\xff\xfe", "ü\u2028".encode(), b"\x00", b"x" * 100_000, b'a","type":"done']
)
def test_an_events_name_is_quoted(name: bytes) -> None:
    payload = Envelope("r1", "mine", Form.EVENTS).payload(b"{}", name, 7)
    assert_not_forged(payload, Form.EVENTS)
    assert json.loads(payload)["event"] == name.decode("utf-8", "replace")


def test_an_upstream_that_always_finds_new_names_is_not_remembered_for_ever() -> None:
    envelope = Envelope("r1", "mine", Form.EVENTS)
    for number in range(3 * MOST_NAMES):
        frame = json.loads(envelope.payload(b"{}", b"name%d" % number, 7))
        assert frame["event"] == f"name{number}"
    assert len(envelope._around) == MOST_NAMES
