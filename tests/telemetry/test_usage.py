"""Token counts: read where an upstream tells them, estimated where it does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols import ANTHROPIC, OPENAI, RESPONSES, UNKNOWN, Sighting, for_path
from proxy.request import RequestBody
from proxy.telemetry.usage import BINARY_BYTES, Usage, prompt_tokens, usage_of_answer, usage_of_stream, usage_unanswered
from proxy.wire.json_members import Member
from proxy.wire.sse import Parser
from tests.support import sse_streams
from tests.support.watching import see

if TYPE_CHECKING:
    from proxy.protocols import StreamProtocol

PROMPT = "word " * 80  # about a hundred tokens
CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}


def body_of(**members: object) -> RequestBody:
    return RequestBody.parse(json.dumps({**CHAT, **members}).encode())


# ---- answers in one piece ----


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, (9, 2)),
        ({"input_tokens": 9, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}, (9, 2)),
        (
            {
                "input_tokens": 3,
                "cache_creation_input_tokens": 20,
                "cache_read_input_tokens": 100,
                "output_tokens": 2,
            },
            (123, 2),
        ),
        ({"prompt_tokens": 9, "total_tokens": 9}, (9, 0)),  # an embedding
        ({"completion_tokens": 2}, (None, 2)),
        ({"prompt_tokens": "9", "completion_tokens": True}, (None, None)),
        ({"seconds": 3}, (None, None)),
        ({}, (None, None)),
        ([], (None, None)),
        (7, (None, None)),
        (None, (None, None)),
    ],
)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_answer_in_one_piece_tells_its_tokens(
    usage: object, counted: tuple[int | None, int | None], last: bool, indent: int | None
) -> None:
    members = {"id": "x", "choices": [{"message": {"content": "hi"}}], "usage": usage}
    body = json.dumps(members if last else {**members, "system_fingerprint": "fp"}, indent=indent).encode()
    assert usage_of_answer(body + b"\n") == Usage(*counted)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"not json",
        b'{"usage"',
        b'{"usage":',
        b'{"usage":{"prompt_tokens":1}',
        b'{"usage":{"prompt_tokens":1}}}',
        b'[{"usage":{"prompt_tokens":1}}]',
        b'{"x":{"usage":{"prompt_tokens":1}}}',
        b'{"x":{"usage":{"prompt_tokens":1}},"y":2}',
        b'{"x":"usage"}',
        b'{"x":["usage",{"prompt_tokens":1}]}',
        b'{"x":"usage","y":{"prompt_tokens":1}}',
        b'{"x":"\\"usage\\":{\\"prompt_tokens\\":1}}"}',
        b'{"usage":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":"\xff"}',
    ],
)
def test_what_tells_no_tokens_is_no_crash(body: bytes) -> None:
    assert usage_of_answer(body) == Usage(None, None, estimated=False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"x":"usage"}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"x":{"usage":{"prompt_tokens":8}}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"x":"\xff"}',
        b'{"x":"\\"usage\\":{}}","usage" : {"prompt_tokens":1,"completion_tokens":2} } ',
    ],
)
def test_the_answers_own_usage_is_found_among_others(body: bytes) -> None:
    assert usage_of_answer(body) == Usage(1, 2)


NESTED: st.SearchStrategy[object] = st.recursive(
    st.integers(0, 9) | st.sampled_from(["usage", '"usage":{', "}"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["usage", "a", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["usage", "a", "z"]), NESTED, max_size=3), st.integers(0, 2))
def test_looking_at_the_end_first_finds_what_decoding_everything_finds(members: dict[str, object], indent: int) -> None:
    counts = {"prompt_tokens": 1, "completion_tokens": 2}
    told = {name: counts if value == 9 else value for name, value in members.items()}
    expected = Usage(1, 2) if told.get("usage") is counts else Usage()
    assert usage_of_answer(json.dumps(told, indent=indent or None).encode()) == expected


# ---- streams ----


def streamed(path: str, stream: bytes, *, whole: bool = True, **members: object) -> Usage:
    """The usage of a vendor's stream that the client read to its end, or (not `whole`) left before its last event."""
    protocol = for_path(path)
    body = body_of(**members)
    watcher = protocol.watcher(body)
    events = Parser(2**24).feed(stream)
    seen = [watcher.observe(event) for event in (events if whole else events[:-1])]
    return usage_of_stream(protocol, watcher, len([one for one in seen if one is not Sighting.WITHHELD]), body)


@pytest.mark.parametrize(
    ("path", "stream", "counted"),
    [
        ("/v1/chat/completions", sse_streams.VLLM_WITH_USAGE, (11, 1)),
        ("/v1/chat/completions", sse_streams.TRANSFORMERS_SERVE, (2, 1)),
        ("/v1/responses", sse_streams.RESPONSES, (3, 2)),
        ("/v1/messages", sse_streams.ANTHROPIC, (7, 4)),
    ],
)
def test_a_stream_that_tells_its_tokens_is_not_estimated(path: str, stream: bytes, counted: tuple[int, int]) -> None:
    assert streamed(path, stream) == Usage(*counted)


@pytest.mark.parametrize(
    ("path", "stream", "written"),
    [
        ("/v1/chat/completions", sse_streams.OPENAI_CHAT, 2),
        ("/v1/chat/completions", sse_streams.LLAMA_CPP, 1),
        ("/v1/chat/completions", sse_streams.OPENROUTER, 0),
    ],
)
def test_a_stream_that_does_not_is_estimated_at_a_token_an_event(path: str, stream: bytes, written: int) -> None:
    assert streamed(path, stream) == Usage(prompt_tokens(body_of()), written, estimated=True)


def left(protocol: StreamProtocol, *events: tuple[str, str], published: int) -> Usage:
    """The usage of a stream that began with `events`, and of which `published` went to its client before it left."""
    body = body_of()
    watcher = protocol.watcher(body)
    for kind, data in events:
        see(watcher, data, kind)
    return usage_of_stream(protocol, watcher, published, body)


def test_a_client_that_leaves_mid_stream_is_told_the_events_it_had() -> None:
    begun = ("", '{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}')
    assert left(OPENAI, begun, published=51) == Usage(prompt_tokens(body_of()), 50, estimated=True)


def test_a_count_from_a_streams_beginning_is_not_taken_for_its_end() -> None:
    start = '{"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}'
    assert left(ANTHROPIC, ("message_start", start), published=1) == Usage(25, 1, estimated=True)
    assert left(ANTHROPIC, ("message_start", start), published=42) == Usage(25, 40, estimated=True)


def test_a_running_count_that_is_more_than_the_events_is_kept() -> None:
    running = '{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"completion_tokens":70}}'
    assert left(OPENAI, ("", running), published=11) == Usage(5, 70, estimated=True)


def test_the_frame_of_a_response_is_no_token() -> None:
    assert left(RESPONSES, published=4) == Usage(prompt_tokens(body_of()), 0, estimated=True)
    assert left(RESPONSES, published=14) == Usage(prompt_tokens(body_of()), 10, estimated=True)


def test_a_half_told_usage_is_completed_by_an_estimate() -> None:
    stream = sse_streams.VLLM_WITH_USAGE.replace(b'"prompt_tokens":11,', b"")
    assert streamed("/v1/chat/completions", stream) == Usage(prompt_tokens(body_of()), 1, estimated=True)


def test_an_unknown_protocols_events_are_no_tokens() -> None:
    assert streamed("/v1/audio/speech", sse_streams.OPENAI_CHAT) == Usage()
    assert usage_unanswered(UNKNOWN, body_of()) == Usage()


def test_a_stream_left_before_its_usage_chunk_is_estimated() -> None:
    without_end = sse_streams.VLLM_WITH_USAGE.partition(
        b'data: {"id":"chatcmpl-v","object":"chat.completion.chunk","model":"llama","choices":[]'
    )[0]
    assert streamed("/v1/chat/completions", without_end).estimated


@pytest.mark.parametrize("protocol", [OPENAI, RESPONSES, ANTHROPIC])
def test_a_request_without_an_answer_has_read_its_prompt(protocol: StreamProtocol) -> None:
    assert usage_unanswered(protocol, body_of()) == Usage(prompt_tokens(body_of()), 0, estimated=True)


# ---- prompts ----


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"messages": []}, 0),
        ({"messages": [], "user": PROMPT, "metadata": {"x": PROMPT}}, 0),
        ({"messages": [], "prompt": PROMPT}, 100),
        ({"messages": [], "input": PROMPT, "instructions": PROMPT}, 200),
        ({"messages": [], "system": PROMPT, "tools": [{"function": {"description": PROMPT}}]}, 210),
        ({}, 110),
    ],
)
def test_a_prompt_is_a_token_every_four_bytes(members: dict[str, object], tokens: int) -> None:
    assert abs(prompt_tokens(body_of(**members)) - tokens) <= 10


@pytest.mark.parametrize("base64", ["iVBORw0KGgo" * 5000, r"iVBORw0KGgo\/" * 5000])
def test_a_picture_is_no_text(base64: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64}"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": PROMPT}, picture]}]
    assert prompt_tokens(body_of(messages=messages)) < 150


RUNS = st.builds(
    bytes.__mul__,
    st.sampled_from([b"x", b" ", b"a b", "é".encode(), b'"', b'","', b'\\"']),
    st.sampled_from([0, 1, 2, *range(BINARY_BYTES - 2, BINARY_BYTES + 3), 3 * BINARY_BYTES]),
)


@given(st.lists(RUNS, max_size=8).map(b"".join))
def test_a_prompt_is_counted_as_if_it_were_taken_apart_at_its_quotes(prompt: bytes) -> None:
    def is_binary(string: bytes) -> bool:
        return len(string) >= BINARY_BYTES and b" " not in string[:BINARY_BYTES] and string.isascii()

    before = b'{"model":"m","prompt":'
    member = Member("prompt", len(before), len(before) + len(prompt))
    body = RequestBody(before + prompt + b',"x":"' + b"x" * 5000 + b'"}', "m", stream=True, members=(member,))
    texts = [string for string in prompt.split(b'"') if not is_binary(string)]
    assert prompt_tokens(body) == sum(map(len, texts)) // 4


def test_a_text_without_blanks_is_text_all_the_same() -> None:
    messages = [{"role": "user", "content": "水" * 1000}]
    raw = json.dumps({**CHAT, "messages": messages}, ensure_ascii=False).encode()
    assert prompt_tokens(RequestBody.parse(raw)) >= 750
