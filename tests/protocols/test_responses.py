"""Responses, as vendors stream them: named by `event:` lines or only by the data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseFailedEvent

from proxy.errors import UpstreamIdle, UpstreamTruncated
from proxy.protocols import RESPONSES, Failure, Sighting
from proxy.wire.sse import Parser
from tests.support.watching import play, see, watch

CREATED: dict[str, Any] = {
    "type": "response.created",
    "sequence_number": 0,
    "response": {
        "id": "resp_7",
        "object": "response",
        "created_at": 1750000000,
        "model": "llama",
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {"team": "a"},
    },
}


def terminal_event(wire: bytes) -> dict[str, Any]:
    """The data of the one event in `wire`, which must be named as its data is."""
    [event] = Parser(2**20).feed(wire)
    data: dict[str, Any] = json.loads(event.data)
    assert event.type.decode() == data["type"]
    return data


# ---- whole streams ----


def test_openai() -> None:
    watcher = watch(RESPONSES)
    play(
        watcher,
        """
        preamble | response.created | {"type":"response.created","sequence_number":0,"response":{"id":"r",
            "status":"in_progress","error":null,"usage":null}}
        preamble | response.in_progress | {"type":"response.in_progress","sequence_number":1,"response":{"id":"r",
            "status":"in_progress"}}
        preamble | response.output_item.added | {"type":"response.output_item.added","sequence_number":2,
            "output_index":0,"item":{"type":"message","content":[]}}
        preamble | response.content_part.added | {"type":"response.content_part.added","sequence_number":3,
            "part":{"type":"output_text","text":""}}
        content | response.output_text.delta | {"type":"response.output_text.delta","sequence_number":4,
            "delta":"hi","logprobs":[]}
        content | response.output_text.done | {"type":"response.output_text.done","sequence_number":5,"text":"hi"}
        content | response.output_item.added | {"type":"response.output_item.added","sequence_number":6,
            "output_index":1}
        """,
    )
    assert not watcher.complete
    play(
        watcher,
        'end | response.completed | {"type":"response.completed","sequence_number":7,"response":{"id":"r","status":'
        '"completed","error":null,"usage":{"input_tokens":11,"output_tokens":3,"total_tokens":14}}}',
    )
    assert watcher.complete
    assert (watcher.tokens_in, watcher.tokens_out, watcher.failure) == (11, 3, None)


def test_transformers_names_its_events_in_the_data_only() -> None:
    watcher = watch(RESPONSES)
    play(
        watcher,
        """
        preamble | | {"response":{"id":"r","status":"queued"},"sequence_number":0,"type":"response.created"}
        preamble | | {"response":{"id":"r","status":"in_progress"},"sequence_number":1,"type":"response.in_progress"}
        content | | {"content_index":0,"delta":"hi","sequence_number":2,"type":"response.output_text.delta"}
        content | | {"type": "response.output_text.delta", "delta": "ho"}
        content | | {"type":"response.output_text.delta","delta":"\\"type\\":\\"response.completed\\""}
        end | | {"response":{"id":"r","status":"completed"},"sequence_number":5,"type":"response.completed"}
        """,
    )
    assert watcher.complete


def test_an_incomplete_response_is_complete_as_a_stream() -> None:
    watcher = watch(RESPONSES)
    play(
        watcher,
        'end | response.incomplete | {"type":"response.incomplete","response":{"status":"incomplete",'
        '"incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":1,"output_tokens":9}}}',
    )
    assert (watcher.complete, watcher.tokens_out, watcher.failure) == (True, 9, None)


def test_chats_marker_is_no_end_here() -> None:
    watcher = watch(RESPONSES)
    play(
        watcher,
        """
        preamble | | [DONE]
        content | response.output_text.delta | {"type":"response.output_text.delta","delta":"[DONE]"}
        content | | [DONE]
        """,
    )
    assert not watcher.complete


def test_a_keepalive_is_no_content() -> None:
    assert see(watch(RESPONSES), '{"type":"keepalive","sequence_number":3}', "keepalive") is Sighting.PING


@pytest.mark.parametrize("type", ["response.web_search_call.in_progress", "response.something.new", ""])
def test_unheard_of_events_are_content(type: str) -> None:
    assert see(watch(RESPONSES), '{"a":1}', type) is Sighting.CONTENT


# ---- errors ----


@pytest.mark.parametrize("named", [True, False])
def test_a_failed_response_is_an_error_that_needs_no_other_end(named: bool) -> None:
    watcher = watch(RESPONSES)
    data = '{"type":"response.failed","response":{"error":{"code":"server_error","message":"GPU lost"},"usage":null}}'
    assert see(watcher, data, "response.failed" if named else "") is Sighting.ERROR
    assert watcher.complete
    assert watcher.failure == Failure(None, {"code": "server_error", "message": "GPU lost"})


@pytest.mark.parametrize("response", ["null", "{}", '{"error":null}', "7"])
def test_a_failure_without_a_reason_is_one_all_the_same(response: str) -> None:
    watcher = watch(RESPONSES)
    assert see(watcher, f'{{"type":"response.failed","response":{response}}}') is Sighting.ERROR
    assert watcher.failure is not None
    assert watcher.failure.message


def test_a_flat_error_is_one() -> None:
    watcher = watch(RESPONSES)
    play(
        watcher,
        'error | error | {"type":"error","sequence_number":4,"code":"rate_limit_exceeded","message":"Slow down",'
        '"param":null}',
    )
    assert watcher.failure == Failure(None, {"code": "rate_limit_exceeded", "message": "Slow down", "param": None})
    assert not watcher.complete


def test_a_nested_error_names_its_status() -> None:
    watcher = watch(RESPONSES)
    play(watcher, 'error | | {"error":{"message":"Busy","code":"x"},"status":429,"type":"error"}')
    assert watcher.failure == Failure(429, {"message": "Busy", "code": "x"})


def test_an_error_without_a_type_is_one() -> None:
    watcher = watch(RESPONSES)
    play(watcher, 'error | | {"error":{"message":"No such model","code":404}}')
    assert watcher.failure == Failure(404, {"message": "No such model", "code": 404})


@pytest.mark.parametrize("data", ["", "x", "[]", '"{}"', '{"type":"response.output_text.delta"'])
def test_what_cannot_be_an_object_is_malformed(data: str) -> None:
    assert see(watch(RESPONSES), data, "response.output_text.delta") is Sighting.MALFORMED


def test_an_end_that_cannot_be_read_is_none() -> None:
    watcher = watch(RESPONSES)
    assert see(watcher, "{response: done}", "response.completed") is Sighting.MALFORMED
    assert not watcher.complete


# ---- the terminal error ----


def test_the_terminal_error_fails_the_response_that_was_created() -> None:
    watcher = watch(RESPONSES)
    see(watcher, json.dumps(CREATED), "response.created")
    see(watcher, '{"type":"response.output_item.added","sequence_number":1,"item":{"name":"response"}}')
    see(watcher, '{"type":"response.output_text.delta","sequence_number":41,"delta":"a"}')
    see(watcher, "not an event")
    event = terminal_event(watcher.terminal_error(UpstreamTruncated("The answer stopped.")))
    assert event == {
        "type": "response.failed",
        "sequence_number": 42,
        "response": {
            **CREATED["response"],
            "status": "failed",
            "error": {"code": "upstream_truncated", "message": "The answer stopped."},
        },
    }


def test_without_a_response_the_terminal_error_makes_one_up_that_clients_read() -> None:
    event = terminal_event(watch(RESPONSES).terminal_error(UpstreamIdle("Silence.")))
    response: dict[str, Any] = event["response"]
    assert response["error"] == {"code": "upstream_idle", "message": "Silence."}
    response["error"]["code"] = "server_error"  # its types list OpenAI's own codes; the client itself takes any
    read = ResponseFailedEvent.model_validate(event).response
    assert (read.status, read.model, read.output) == ("failed", "chat", [])
    assert read.id.startswith("resp_")
    assert event["sequence_number"] == 0


def test_two_made_up_responses_have_two_ids() -> None:
    first, second = (terminal_event(watch(RESPONSES).terminal_error(UpstreamIdle("x")))["response"] for _ in "ab")
    assert first != second


def test_servers_that_do_not_number_get_number_zero() -> None:
    watcher = watch(RESPONSES)
    see(watcher, '{"type":"response.output_text.delta","delta":"a"}')
    assert terminal_event(watcher.terminal_error(UpstreamIdle("x")))["sequence_number"] == 0


def test_a_refusal_has_openais_shape() -> None:
    assert json.loads(RESPONSES.error_body(UpstreamIdle("Silence."), "req_1")) == {
        "error": {"message": "Silence.", "type": "upstream_error", "param": None, "code": "upstream_idle"}
    }


def test_keepalive_is_a_comment_without_a_blank_line() -> None:
    assert RESPONSES.keepalive == b": ping\n"
