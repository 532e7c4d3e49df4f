"""What kind of failure an exchange came to: one word for what an upstream's error, status or event means to routing.

What is done about each is `retry`'s table; how it is worded for the client, `protocols`'.
"""

from __future__ import annotations

import enum
from typing import Final

from proxy.errors import (
    FirstTokenTimeout,
    GatewayError,
    StaleConnection,
    UpstreamIdle,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from proxy.protocols.failure import Failure, answer_error


class FailureKind(enum.StrEnum):
    """The rows of http.md's "what is tried again"."""

    STALE = "stale"  # a kept connection that was closed before it gave a byte
    UNREACHABLE = "unreachable"  # refused, no name, no TLS, closed before the answer's head
    BROKEN = "broken"  # closed in the middle of the answer
    SILENT = "silent"  # nothing came in time
    SERVER_ERROR = "server_error"  # 500, 502, 503, 504
    ERROR_EVENT = "error_event"  # an error under status 200
    TOO_MANY = "too_many"  # 429
    INVALID = "invalid"  # an answer that is no HTTP, or none that is passed on
    TIMED_OUT = "timed_out"  # `timeouts.total` is over
    CONTEXT_LENGTH = "context_length"  # the prompt is longer than the model takes
    REJECTED = "rejected"  # any other 4xx, a content-policy refusal


_OF_ERRORS: Final = (
    (StaleConnection, FailureKind.STALE),
    (UpstreamUnreachable, FailureKind.UNREACHABLE),
    (UpstreamTruncated, FailureKind.BROKEN),
    (FirstTokenTimeout, FailureKind.SILENT),
    (UpstreamIdle, FailureKind.SILENT),
    (UpstreamTimeout, FailureKind.TIMED_OUT),
    (UpstreamInvalid, FailureKind.INVALID),
)
_SERVER_ERRORS: Final = frozenset({500, 502, 503, 504, 529})  # 529: Anthropic is overloaded
_TOO_LONG_NAMES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_TOO_LONG_WORDS: Final = ("context length", "context size", "context window", "prompt is too long")
"""vLLM, SGLang and Anthropic have no code of their own for it."""
_REJECTIONS: Final = frozenset(
    {"invalid_request_error", "content_filter", "content_policy_violation", "BadRequestError"}
)

ANSWERED: Final = frozenset({FailureKind.TOO_MANY, FailureKind.CONTEXT_LENGTH, FailureKind.REJECTED})
"""The replica works: what it said was about the request, or about how many there are."""
UNTOLD: Final = frozenset({FailureKind.STALE, FailureKind.TIMED_OUT})
"""Says nothing of the replica: servers close idle connections as they like, and a long answer meets our own limit."""
COUNTED: Final = frozenset(FailureKind) - ANSWERED - UNTOLD
"""What speaks against the replica: its breaker counts these, before and after the first content."""


def kind_of_error(error: GatewayError) -> FailureKind | None:
    """What an exchange failed with; None for what is not the replica's (a drain, say)."""
    return next((kind for cause, kind in _OF_ERRORS if isinstance(error, cause)), None)


def kind_of_status(status: int, body: bytes = b"") -> FailureKind | None:
    """What a whole answer means; None for one that is no failure of anybody's."""
    if status < 400:
        return None
    if status == 429:
        return FailureKind.TOO_MANY
    if status in _SERVER_ERRORS:
        return FailureKind.SERVER_ERROR
    failure = answer_error(body) if status in (400, 413, 422) else None
    return FailureKind.CONTEXT_LENGTH if failure and _is_too_long(failure) else FailureKind.REJECTED


def kind_of_failure(failure: Failure) -> FailureKind:
    """What an error under status 200 means: the status it names counts, if it names one."""
    if _is_too_long(failure):
        return FailureKind.CONTEXT_LENGTH
    if _names(failure) & _REJECTIONS:
        return FailureKind.REJECTED
    if failure.status is None or failure.status in _SERVER_ERRORS:
        return FailureKind.ERROR_EVENT
    return kind_of_status(failure.status) or FailureKind.ERROR_EVENT


def _names(failure: Failure) -> set[object]:
    return {value for value in (failure.error.get("code"), failure.error.get("type")) if isinstance(value, str)}


def _is_too_long(failure: Failure) -> bool:
    message = failure.message.lower()
    return bool(_names(failure) & _TOO_LONG_NAMES) or any(words in message for words in _TOO_LONG_WORDS)
