"""One word for what an upstream's error, status or event means."""

from __future__ import annotations

import json

import pytest

from proxy.errors import (
    FirstTokenTimeout,
    GatewayError,
    StaleConnection,
    Unavailable,
    UpstreamError,
    UpstreamIdle,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from proxy.protocols.failure import failure_of
from proxy.routing.failure_kind import (
    ANSWERED,
    COUNTED,
    UNTOLD,
    FailureKind,
    kind_of_error,
    kind_of_failure,
    kind_of_status,
)

TOO_LONG = [
    {"code": "context_length_exceeded", "message": "no", "type": "invalid_request_error"},
    {"code": 400, "message": "This model's maximum context length is 4096 tokens.", "type": "BadRequestError"},
    {"code": 400, "message": "the request exceeds it", "type": "exceed_context_size_error"},
    {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StaleConnection, FailureKind.STALE),
        (UpstreamUnreachable, FailureKind.UNREACHABLE),
        (UpstreamTruncated, FailureKind.BROKEN),
        (FirstTokenTimeout, FailureKind.SILENT),
        (UpstreamIdle, FailureKind.SILENT),
        (UpstreamTimeout, FailureKind.TIMED_OUT),
        (UpstreamInvalid, FailureKind.INVALID),
    ],
)
def test_an_error_has_its_kind(error: type[GatewayError], kind: FailureKind) -> None:
    assert kind_of_error(error("it failed")) is kind


def test_every_upstream_error_has_a_kind() -> None:
    def below(kind: type[UpstreamError]) -> list[type[UpstreamError]]:
        return [sub for direct in kind.__subclasses__() for sub in (direct, *below(direct))]

    assert all(kind_of_error(error("it failed")) is not None for error in below(UpstreamError))


def test_what_is_not_the_replicas_has_none() -> None:
    assert kind_of_error(Unavailable("shutting down", code="draining")) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, None),
        (204, None),
        (400, FailureKind.REJECTED),
        (401, FailureKind.REJECTED),
        (404, FailureKind.REJECTED),
        (429, FailureKind.TOO_MANY),
        (500, FailureKind.SERVER_ERROR),
        (501, FailureKind.REJECTED),
        (502, FailureKind.SERVER_ERROR),
        (503, FailureKind.SERVER_ERROR),
        (504, FailureKind.SERVER_ERROR),
        (529, FailureKind.SERVER_ERROR),
    ],
)
def test_a_status_has_its_kind(status: int, kind: FailureKind | None) -> None:
    assert kind_of_status(status) is kind


@pytest.mark.parametrize("error", TOO_LONG)
def test_a_prompt_that_is_too_long_is_recognised_in_a_body_and_in_an_event(error: dict[str, object]) -> None:
    assert kind_of_status(400, json.dumps({"error": error}).encode()) is FailureKind.CONTEXT_LENGTH
    assert kind_of_failure(failure_of({"error": error})) is FailureKind.CONTEXT_LENGTH


@pytest.mark.parametrize("body", [b"", b"not JSON", b'{"error": {"message": "temperature is out of range"}}', b"[]"])
def test_any_other_400_is_a_rejection(body: bytes) -> None:
    assert kind_of_status(400, body) is FailureKind.REJECTED


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "out of memory"}, FailureKind.ERROR_EVENT),
        ({"message": "overloaded", "type": "overloaded_error"}, FailureKind.ERROR_EVENT),
        ({"message": "it broke", "code": 500}, FailureKind.ERROR_EVENT),
        ({"message": "slow down", "code": 429}, FailureKind.TOO_MANY),
        ({"message": "no", "code": "content_filter"}, FailureKind.REJECTED),
        ({"message": "no", "type": "invalid_request_error"}, FailureKind.REJECTED),
        ({"message": "no", "code": 422}, FailureKind.REJECTED),
    ],
)
def test_an_error_event_is_what_it_names(error: dict[str, object], kind: FailureKind) -> None:
    assert kind_of_failure(failure_of({"error": error})) is kind


def test_every_kind_says_something_of_the_replica_or_nothing() -> None:
    assert set(FailureKind) == COUNTED | ANSWERED | UNTOLD
    assert not COUNTED & ANSWERED
    assert not UNTOLD & (COUNTED | ANSWERED)
