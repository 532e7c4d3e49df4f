"""A protocol nobody here knows."""

from __future__ import annotations

import json

import pytest

from proxy.errors import UpstreamTruncated
from proxy.protocols import UNKNOWN, Sighting
from tests.support.watching import see, watch


@pytest.mark.parametrize("data", ["", "x", "[DONE]", '{"error":"x"}', '{"usage":{"prompt_tokens":1}}'])
@pytest.mark.parametrize("type", ["", "error", "message_stop"])
def test_everything_is_content(data: str, type: str) -> None:
    watcher = watch(UNKNOWN)
    assert see(watcher, data, type) is Sighting.CONTENT
    assert (watcher.failure, watcher.tokens_in, watcher.tokens_out) == (None, None, None)


def test_the_end_of_the_body_is_the_end() -> None:
    assert watch(UNKNOWN).complete


def test_nothing_is_said_in_a_stream_that_breaks() -> None:
    assert watch(UNKNOWN).terminal_error(UpstreamTruncated("x")) == b""


def test_a_refusal_has_openais_shape() -> None:
    assert json.loads(UNKNOWN.error_body(UpstreamTruncated("x"), "r"))["error"]["code"] == "upstream_truncated"
