"""What the built-in model hands back: one whole body, or pieces with the delay before each; how they are worded as JSON
and as events, and how a refusal looks. When a piece is due in clock time is the transport's business."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.upstream.demo.settings import DemoSettings

JSON_TYPE = "application/json"
EVENT_STREAM_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"

Timed = tuple[float, bytes]
"""Seconds after the piece before it (the first: after the request), and the piece."""

Beat = tuple[bool, bytes]
"""Whether the event carries a token, and its bytes: only tokens take time."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes an answer unlike any other; made outside, where clocks and chance are. `nonce` is 32 hex digits."""

    nonce: str
    created: int


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer in one piece, `delay_s` after the request."""

    status: int
    body: bytes
    delay_s: float = 0.0
    content_type: str = JSON_TYPE


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer under status 200 whose pieces come one by one, each a whole event; made as they are asked for."""

    pieces: Iterator[Timed]
    content_type: str = EVENT_STREAM_TYPE


Answer = Whole | Streamed


class Refusal(Exception):
    """The request cannot be answered: a status and a sentence for its sender."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def openai(self) -> Whole:
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return Whole(self.status, encoded({"error": error}))

    def anthropic(self) -> Whole:
        kind = "not_found_error" if self.status == 404 else "invalid_request_error"
        return Whole(self.status, encoded({"type": "error", "error": {"type": kind, "message": self.message}}))


def encoded(value: Any) -> bytes:
    """Compact JSON as UTF-8. Half a surrogate pair, which a prompt may hold as an escape, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(data: bytes, kind: str = "") -> bytes:
    """One server-sent event; `data` is one line."""
    named = f"event: {kind}\n".encode() if kind else b""
    return b"%bdata: %b\n\n" % (named, data)


def paced(beats: Iterable[Beat], settings: DemoSettings) -> Iterator[Timed]:
    """Give events their delays: everything up to the first token comes with it, each later token an interval after."""
    delay_s = settings.first_s
    started = False
    for carries_token, piece in beats:
        if carries_token and started:
            delay_s = settings.interval_s
        yield delay_s, piece
        started = started or carries_token
        delay_s = 0.0
