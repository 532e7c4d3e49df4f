"""A stage's events in bytes: what a client's parser reads of them, as event stream and as text frame."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.sse import Event, Parser
from proxy.wire.stages import (
    CANCEL,
    CHAT_CHUNK,
    DONE,
    ERROR,
    LONGEST_STAGE_ID,
    SUMMARY,
    TOOL_CHUNK,
    StageWording,
    is_stage_id,
)

CHUNK = b'{"choices":[{"delta":{"content":"hi"}}]}'
STAGE_IDS = [
    "s1",
    "",
    "two words",
    'quo"te\\',
    "a:b",
    "über 🌊 \u2028",
    "</script>",
    ',"chunk":',
    "-chunk-7",
    "x" * 1024,
]


def read(event: Event) -> Event:
    """What a client's parser makes of the event's bytes."""
    [parsed] = Parser(1 << 20).feed(event.wire)
    assert (parsed.wire, parsed.data, parsed.type, parsed.id) == (event.wire, event.data, event.type, event.id)
    return parsed


def test_a_chunk_is_put_into_its_stages_event_byte_for_byte() -> None:
    event = StageWording("s1").chunks(CHAT_CHUNK)(CHUNK, 0)
    assert event.wire == (
        b"id: s1-chunk-0\nevent: chat_completion_chunk\n"
        b'data: {"stage_id":"s1","chunk":{"choices":[{"delta":{"content":"hi"}}]}}\n\n'
    )


def test_a_chunk_of_the_synthesis_stands_in_tool_results() -> None:
    event = StageWording("s1").chunks(TOOL_CHUNK)(CHUNK, 12)
    assert event.wire == (
        b"id: s1-chunk-12\nevent: tool_completion_chunk\n"
        b'data: {"stage_id":"s1","tool_results":{"choices":[{"delta":{"content":"hi"}}]}}\n\n'
    )


@pytest.mark.parametrize(
    ("kind", "members", "data"),
    [
        (DONE, None, b'{"stage_id":"s1"}'),
        (CANCEL, {}, b'{"stage_id":"s1"}'),
        (
            ERROR,
            {"error": "Out of \u201ememory\u201c.\n"},
            b'{"stage_id":"s1","error":"Out of \\u201ememory\\u201c.\\n"}',
        ),
        (SUMMARY, {"tool_summary": {"round": 1}}, b'{"stage_id":"s1","tool_summary":{"round":1}}'),
    ],
)
def test_every_other_event_has_the_stages_id_and_its_own_members(
    kind: str, members: dict[str, object] | None, data: bytes
) -> None:
    event = StageWording("s1").event(kind, 3, members)
    assert event.wire == b"id: s1-chunk-3\nevent: %b\ndata: %b\n\n" % (kind.encode(), data)
    assert read(event).type == kind.encode()


@pytest.mark.parametrize("stage_id", STAGE_IDS)
@pytest.mark.parametrize("kind", [CHAT_CHUNK, TOOL_CHUNK, DONE])
def test_any_stage_id_comes_back_as_it_was(stage_id: str, kind: str) -> None:
    wording = StageWording(stage_id)
    event = wording.event(kind, 7) if kind == DONE else wording.chunks(kind)(CHUNK, 7)
    said = read(event)
    assert said.id == f"{stage_id}-chunk-7".encode()
    assert json.loads(said.data)["stage_id"] == stage_id
    frame = json.loads(wording.frame_payload(event))
    assert list(frame) == ["event", "id", "data"]
    assert (frame["event"], frame["id"], frame["data"]) == (kind, f"{stage_id}-chunk-7", json.loads(said.data))


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_line_ends_in_a_chunk_become_spaces(end: bytes) -> None:
    event = StageWording("s").chunks(CHAT_CHUNK)(b'{"a":' + end + b"1}", 0)
    assert read(event).data == b'{"stage_id":"s","chunk":{"a": 1}}'


@pytest.mark.parametrize("stage_id", STAGE_IDS)
@pytest.mark.parametrize(("kind", "member"), [(CHAT_CHUNK, "chunk"), (TOOL_CHUNK, "tool_results")])
def test_bytes_that_are_no_utf8_are_written_out_within_the_frame_only(kind: str, member: str, stage_id: str) -> None:
    wording = StageWording(stage_id)
    event = wording.chunks(kind)(b'{"a":"\xff","chunk":1}', 0)
    assert b'{"a":"\xff","chunk":1}' in event.wire
    frame = json.loads(wording.frame_payload(event).decode())
    assert frame["data"] == {"stage_id": stage_id, member: {"raw": '{"a":"\\xff","chunk":1}'}}


def test_a_frame_beyond_ascii_is_the_bytes_that_came() -> None:
    wording = StageWording("s")
    event = wording.chunks(CHAT_CHUNK)('{"a":"über 🌊"}'.encode(), 0)
    assert '"chunk":{"a":"über 🌊"}}}'.encode() in wording.frame_payload(event)


def test_a_whole_answer_has_the_completion_as_it_came() -> None:
    wording = StageWording('s"')
    assert wording.whole(b'{ "id":1.0}') == b'{"stage_id":"s\\"","chat_completion":{ "id":1.0}}'
    more = wording.whole(b"{}", ("tool_summary", b"[]"), ("tool_completion", b"null"))
    assert more == b'{"stage_id":"s\\"","chat_completion":{},"tool_summary":[],"tool_completion":null}'


@pytest.mark.parametrize(
    "text", ["a\nb", "\r", "nul\0", "\x1b", "\x7f", "\x85", "\ud800", "x" * (LONGEST_STAGE_ID + 1)]
)
def test_what_would_break_the_id_line_is_no_stage_id(text: str) -> None:
    assert not is_stage_id(text)
    with pytest.raises(ValueError, match="control characters"):
        StageWording(text)


@given(st.text(max_size=40), st.integers(0, 10**9))
def test_no_stage_id_changes_what_an_event_is(stage_id: str, number: int) -> None:
    if is_stage_id(stage_id):
        event = read(StageWording(stage_id).chunks(CHAT_CHUNK)(CHUNK, number))
        assert json.loads(event.data) == {"stage_id": stage_id, "chunk": json.loads(CHUNK)}
