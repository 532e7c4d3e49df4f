"""A kept stream as server-sent events: each with its number, and the end in the stream's own protocol."""

from __future__ import annotations

import json

import pytest

from proxy.errors import InvalidRequest, UpstreamTruncated
from proxy.streams.replayed import Replayed
from proxy.wire.mux_frames import Ending, Form
from proxy.wire.sse import Event, Parser

CHAT = Replayed("/v1/chat/completions", Form.CHUNKS, "s_1")
MESSAGES = Replayed("/v1/messages", Form.EVENTS, "s_1")
OTHER = Replayed("/v1/other", Form.EVENTS, "s_1")
STAGE = Replayed("/stream/v1/chat", Form.STAGES, 'st "é" 2')
TRUNCATED = UpstreamTruncated("gone")


def event(data: bytes, name: bytes = b"") -> Event:
    """As it is kept."""
    return Event(data, data, data, name)


def parsed(wire: bytes) -> Event:
    [read] = Parser(1 << 20).feed(wire)
    return read


def test_an_event_is_its_data_under_its_number() -> None:
    first, second = CHAT.events([event(b'{"a":1}'), event(b'{"b":2}', b"n")], 41)
    assert first.wire == b'id: 41\ndata: {"a":1}\n\n'
    assert second.wire == b'id: 42\nevent: n\ndata: {"b":2}\n\n'


@pytest.mark.parametrize(
    ("name", "member"),
    [
        (b"chat_completion_chunk", "chunk"),
        (b"tool_completion_chunk", "tool_results"),
        (b"tool_summary", "tool_summary"),
    ],
)
def test_a_stages_event_has_an_id_and_words_of_its_own(name: bytes, member: str) -> None:
    [each] = STAGE.events([event(b'{"a":1}', name)], 8)
    read = parsed(each.wire)
    assert (read.type, read.id) == (name, 'st "é" 2-chunk-7'.encode())
    assert json.loads(read.data) == {"stage_id": 'st "é" 2', member: {"a": 1}}
    assert STAGE.number('st "é" 2-chunk-7') == 8


def test_a_stages_event_that_comes_from_the_stage_is_ready() -> None:
    wire = b"id: s-chunk-7\nevent: chat_completion_chunk\ndata: {}\n\n"
    fresh, kept = Event(wire, wire, b'{"a":1}', b"chat_completion_chunk"), event(b'{"b":2}', b"chat_completion_chunk")
    first, second = STAGE.events([fresh, kept], 8)
    assert first is fresh
    assert parsed(second.wire).id == 'st "é" 2-chunk-8'.encode()


@pytest.mark.parametrize(
    ("replayed", "ending", "words"),
    [
        (CHAT, Ending.done(None), b"id: 9\ndata: [DONE]\n\n"),
        (MESSAGES, Ending.done(None), b""),
        (CHAT, Ending.refused({}, 500, event=b"data: {}\n\n"), b"id: 9\ndata: {}\n\n"),
        (MESSAGES, Ending.refused({}, 500, event=b""), b""),
        (OTHER, Ending.failed(TRUNCATED), None),
        (OTHER, Ending.cancelled("client"), None),
    ],
)
def test_the_end_is_said_once_in_the_streams_protocol(replayed: Replayed, ending: Ending, words: bytes | None) -> None:
    assert replayed.last_words(ending, 9) == words


def test_a_stopped_stream_says_so_and_makes_up_no_end() -> None:
    chat = CHAT.last_words(Ending.cancelled("client"), 9)
    messages = MESSAGES.last_words(Ending.cancelled("detached"), 9)
    assert chat is not None
    assert messages is not None
    assert parsed(chat).id == b"9"
    assert json.loads(parsed(chat).data)["error"]["code"] == "cancelled"
    assert (parsed(messages).type, json.loads(parsed(messages).data)["type"]) == (b"error", "error")
    assert b"detached" in messages


@pytest.mark.parametrize(
    ("ending", "members"),
    [
        (Ending.done(None), {}),
        (Ending.cancelled("client"), {}),
        (Ending.failed(TRUNCATED), {"error": "Gone. Send the request again."}),
        (Ending.failed(InvalidRequest("not this")), {"error": "not this"}),
    ],
    ids=lambda value: value.type if isinstance(value, Ending) else "",
)
def test_a_stages_end_is_its_last_event(ending: Ending, members: dict[str, str]) -> None:
    words = STAGE.last_words(ending, 3)
    assert words is not None
    assert (parsed(words).type.decode(), parsed(words).id) == (ending.type, 'st "é" 2-chunk-2'.encode())
    assert json.loads(parsed(words).data) == {"stage_id": 'st "é" 2', **members}


def test_an_error_of_one_followers_own_has_no_number() -> None:
    chat, stage = CHAT.error(TRUNCATED), STAGE.error(TRUNCATED)
    assert chat is not None
    assert stage is not None
    assert (parsed(chat).id, json.loads(parsed(chat).data)["error"]["code"]) == (None, "upstream_truncated")
    assert (parsed(stage).id, parsed(stage).type) == (None, b"error")
    assert json.loads(parsed(stage).data) == {"stage_id": 'st "é" 2', "error": "Gone. Send the request again."}
    assert OTHER.error(TRUNCATED) is None


@pytest.mark.parametrize(
    ("replayed", "ending", "after", "over"),
    [
        (CHAT, None, 9, False),
        (CHAT, Ending.done(None), 8, False),
        (CHAT, Ending.done(None), 9, True),
        (MESSAGES, Ending.done(None), 7, False),
        (MESSAGES, Ending.done(None), 8, True),
        (OTHER, Ending.failed(TRUNCATED), 8, False),
    ],
)
def test_it_is_over_for_one_who_has_all_that_is_said(
    replayed: Replayed, ending: Ending | None, after: int, over: bool
) -> None:
    assert replayed.is_over(ending, 9, after) is over


@pytest.mark.parametrize("id", ["", "x", "-1", "1.5", "²", "9" * 19, "s_1-chunk-3", 'st "é" 2-chunk-3'])
def test_what_is_no_number_is_refused(id: str) -> None:
    assert CHAT.number("0") == 0
    assert CHAT.number("12") == 12
    with pytest.raises(InvalidRequest):
        CHAT.number(id)
