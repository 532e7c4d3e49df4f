"""Anthropic's messages, as vendors stream them."""

from __future__ import annotations

import json

import pytest
from anthropic.types import ErrorResponse

from proxy.errors import (
    BodyTooLarge,
    FirstTokenTimeout,
    Forbidden,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    Unauthorized,
    Unavailable,
    UpstreamInvalid,
    UpstreamTruncated,
)
from proxy.protocols import ANTHROPIC, Failure, Sighting
from proxy.wire.sse import Parser
from tests.support.watching import play, see, watch


def test_claude() -> None:
    watcher = watch(ANTHROPIC)
    play(
        watcher,
        """
        preamble | message_start | {"type":"message_start","message":{"id":"msg_1","role":"assistant","content":[],
            "stop_reason":null,"usage":{"input_tokens":25,"output_tokens":1}}}
        preamble | content_block_start | {"type":"content_block_start","index":0,"content_block":{"type":"text",
            "text":""}}
        ping | ping | {"type": "ping"}
        content | content_block_delta | {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",
            "text":"Hi"}}
        ping | ping | {"type": "ping"}
        content | content_block_stop | {"type":"content_block_stop","index":0}
        content | content_block_start | {"type":"content_block_start","index":1,"content_block":{"type":"tool_use",
            "id":"t","name":"f","input":{}}}
        content | content_block_delta | {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta",
            "partial_json":"{\\"type\\":\\"message_stop\\"}"}}
        content | message_delta | {"type":"message_delta","delta":{"stop_reason":"tool_use"},
            "usage":{"output_tokens":15}}
        """,
    )
    assert not watcher.complete
    play(watcher, 'end | message_stop | {"type":"message_stop"}')
    assert (watcher.complete, watcher.tokens_in, watcher.tokens_out, watcher.failure) == (True, 25, 15, None)


def test_events_without_names_are_known_by_their_type() -> None:
    watcher = watch(ANTHROPIC)
    play(
        watcher,
        """
        preamble | | {"message":{"usage":{"input_tokens":3}},"type":"message_start"}
        ping | | {"type":"ping"}
        content | | {"index":0,"delta":{"type":"text_delta","text":"message_stop"},"type":"content_block_delta"}
        end | | {"type": "message_stop"}
        """,
    )
    assert (watcher.complete, watcher.tokens_in, watcher.tokens_out) == (True, 3, None)


def test_a_prompt_from_the_cache_is_a_prompt() -> None:
    watcher = watch(ANTHROPIC)
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 3000}
    see(watcher, json.dumps({"type": "message_start", "message": {"usage": usage}}), "message_start")
    see(watcher, '{"type":"message_delta","usage":{"input_tokens":0,"output_tokens":7}}', "message_delta")
    assert (watcher.tokens_in, watcher.tokens_out) == (3210, 7)


def test_a_message_of_no_blocks_is_content_once_it_says_why() -> None:
    play(
        watch(ANTHROPIC),
        """
        preamble | message_start | {"type":"message_start","message":{"usage":null}}
        preamble | content_block_start | {"type":"content_block_start"}
        preamble | content_block_stop | {"type":"content_block_stop"}
        content | message_delta | {"type":"message_delta","delta":{"stop_reason":"end_turn"}}
        content | content_block_start | {"type":"content_block_start"}
        end | message_stop | {"type":"message_stop"}
        """,
    )


def test_unheard_of_events_are_content() -> None:
    assert see(watch(ANTHROPIC), '{"type":"new"}', "new") is Sighting.CONTENT


def test_chats_marker_is_no_end_here() -> None:
    watcher = watch(ANTHROPIC)
    assert see(watcher, "[DONE]") is Sighting.PREAMBLE
    assert not watcher.complete


@pytest.mark.parametrize("named", [True, False])
def test_an_error_event_is_an_error(named: bool) -> None:
    watcher = watch(ANTHROPIC)
    data = '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    assert see(watcher, data, "error" if named else "") is Sighting.ERROR
    assert watcher.failure == Failure(None, {"type": "overloaded_error", "message": "Overloaded"})
    assert not watcher.complete


def test_an_error_without_a_type_is_one() -> None:
    watcher = watch(ANTHROPIC)
    assert see(watcher, '{"error":{"message":"Too long","code":400}}') is Sighting.ERROR
    assert watcher.failure is not None
    assert watcher.failure.status == 400


@pytest.mark.parametrize("type", ["content_block_delta", "message_stop", "error", "message_start", ""])
@pytest.mark.parametrize("data", ["", "x", "[]", '{"type":"message_stop"'])
def test_what_cannot_be_an_object_is_malformed(data: str, type: str) -> None:
    watcher = watch(ANTHROPIC)
    assert see(watcher, data, type) is Sighting.MALFORMED
    assert not watcher.complete


def test_an_end_that_cannot_be_read_is_none() -> None:
    watcher = watch(ANTHROPIC)
    assert see(watcher, "{stop}", "message_stop") is Sighting.MALFORMED
    assert not watcher.complete


# ---- how errors are worded ----


def test_the_terminal_error_is_an_error_event() -> None:
    [event] = Parser(2**20).feed(watch(ANTHROPIC).terminal_error(UpstreamTruncated("The answer stopped.")))
    assert event.type == b"error"
    read = ErrorResponse.model_validate(json.loads(event.data))
    assert (read.error.type, read.error.message) == ("api_error", "The answer stopped.")


@pytest.mark.parametrize(
    ("error", "type"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (Forbidden("x"), "permission_error"),
        (ModelNotFound("x"), "not_found_error"),
        (MethodNotAllowed("x"), "invalid_request_error"),
        (BodyTooLarge("x"), "request_too_large"),
        (InternalError("x"), "api_error"),
        (UpstreamInvalid("x"), "api_error"),
        (Unavailable("x"), "overloaded_error"),
        (FirstTokenTimeout("x"), "timeout_error"),
    ],
)
def test_errors_have_anthropics_names(error: GatewayError, type: str) -> None:
    assert json.loads(ANTHROPIC.error_body(error, "req_1")) == {
        "type": "error",
        "error": {"type": type, "message": "x"},
        "request_id": "req_1",
    }


def test_too_much_at_once_is_a_rate_limit() -> None:
    class Enough(GatewayError):
        status = 429

    assert json.loads(ANTHROPIC.error_body(Enough("x"), "r"))["error"]["type"] == "rate_limit_error"


def test_a_failure_keeps_the_upstreams_error_object() -> None:
    failure = Failure(None, {"type": "overloaded_error", "message": "Overloaded"})
    assert json.loads(ANTHROPIC.failure_body(failure, "req_1")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"},
        "request_id": "req_1",
    }


def test_keepalive_is_a_ping_event() -> None:
    [event] = Parser(2**20).feed(ANTHROPIC.keepalive)
    assert (event.type, event.data) == (b"ping", b'{"type": "ping"}')
    assert see(watch(ANTHROPIC), event.data, "ping") is Sighting.PING
