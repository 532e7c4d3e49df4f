"""What all protocols have in common."""

from __future__ import annotations

import json

import pytest

from proxy.errors import InternalError
from proxy.protocols import ANTHROPIC, OPENAI, RESPONSES, UNKNOWN, Failure, Sighting, StreamProtocol
from proxy.request import RequestBody
from proxy.wire.sse import Parser
from tests.support.watching import see, watch

ALL = [OPENAI, RESPONSES, ANTHROPIC, UNKNOWN]
KNOWN = [OPENAI, RESPONSES, ANTHROPIC]
every = pytest.mark.parametrize("protocol", ALL, ids=lambda protocol: protocol.name)
every_known = pytest.mark.parametrize("protocol", KNOWN, ids=lambda protocol: protocol.name)


@every
def test_each_exchange_has_its_own_watcher(protocol: StreamProtocol) -> None:
    first, second = watch(protocol), watch(protocol)
    see(first, '{"type":"error","error":{"message":"m"}}', "error")
    assert second.failure is None


@every_known
def test_a_terminal_error_is_one_event_that_the_watcher_itself_takes_for_an_error(protocol: StreamProtocol) -> None:
    wire = watch(protocol).terminal_error(InternalError('two\nlines and a "quote"'))
    [event] = Parser(2**20).feed(wire)
    assert event.wire == wire
    watcher = watch(protocol)
    assert watcher.observe(event) is Sighting.ERROR
    assert watcher.failure is not None
    assert watcher.failure.message == 'two\nlines and a "quote"'


@every_known
def test_preamble_is_never_sighted_after_content(protocol: StreamProtocol) -> None:
    watcher = watch(protocol)
    content = '{"choices":[{"delta":{"content":"a"}}]}'
    see(watcher, content, "content")
    later = [see(watcher, "{}", type) for type in ("response.created", "message_start", "content_block_start", "")]
    assert Sighting.PREAMBLE not in later


@every_known
def test_the_first_error_counts(protocol: StreamProtocol) -> None:
    watcher = watch(protocol)
    for sentence in ("first", "second"):
        see(watcher, f'{{"type":"error","error":{{"message":"{sentence}"}}}}', "error")
    assert watcher.failure is not None
    assert watcher.failure.message == "first"


@every
def test_bodies_are_json_that_ends_nowhere_else(protocol: StreamProtocol) -> None:
    assert json.loads(protocol.error_body(InternalError("é"), "req_1"))["error"]["message"] == "é"
    assert json.loads(protocol.failure_body(Failure(None, {"message": "é"}), "req_1"))["error"] == {"message": "é"}


@every
def test_only_openai_has_to_be_asked_for_usage(protocol: StreamProtocol) -> None:
    assert protocol.asks_for_usage(RequestBody.parse(b'{"model":"m","stream":true}')) is (protocol is OPENAI)


@every
def test_keepalives_end_their_line(protocol: StreamProtocol) -> None:
    assert protocol.keepalive.endswith(b"\n")
    assert len(Parser(2**20).feed(protocol.keepalive)) == (1 if protocol is ANTHROPIC else 0)
