"""Anthropic's messages: `message_start`, blocks of deltas, `message_delta`, `message_stop`, and any time a `ping`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.protocols.event_data import compact, could_be_object, count, decoded, event_type, is_done
from proxy.protocols.failure import Failure, failure_of
from proxy.protocols.protocol import RequestFacts, Sighting, StreamProtocol
from proxy.wire.sse import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.errors import GatewayError
    from proxy.wire.sse import Event

_CONTENT = Sighting.CONTENT
# All others are content: above all `content_block_delta`.
_TURNS = {
    b"message_start": Sighting.PREAMBLE,
    b"content_block_start": Sighting.PREAMBLE,
    b"content_block_stop": Sighting.PREAMBLE,
    b"ping": Sighting.PING,
    b"message_delta": Sighting.CONTENT,
    b"message_stop": Sighting.END,
    b"error": Sighting.ERROR,
}
# What was read anew, written to the cache and read from it are counted apart; the prompt is all three.
_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

# https://docs.anthropic.com/en/api/errors; any other status below 500 is the request's fault, from there on ours.
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessagesWatcher:
    """Watches message events, named by their `event:` line or, without one, by the data's own `type`."""

    __slots__ = ("_content_seen", "complete", "failure", "tokens_in", "tokens_out")
    pattern: tuple[bytes, bytes] | None = None

    def __init__(self, request: RequestFacts) -> None:
        self.complete = False
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.failure: Failure | None = None
        self._content_seen = False

    def observe(self, event: Event) -> Sighting:
        data = event.data
        if (data[:1] != b"{" or data[-1:] != b"}") and not could_be_object(data):
            # `[DONE]` means nothing here: some servers send it all the same.
            return self._ordinary() if is_done(data) else Sighting.MALFORMED
        kind = event.type or event_type(data)
        if kind in _TURNS:
            return self._turn(kind, data)
        self._content_seen = True
        return _CONTENT

    def terminal_error(self, error: GatewayError) -> bytes:
        return encode(compact({"type": "error", "error": _worded(error)}), b"error")

    def _ordinary(self) -> Sighting:
        return _CONTENT if self._content_seen else Sighting.PREAMBLE

    def _turn(self, kind: bytes, data: bytes) -> Sighting:
        """Where the message begins, rests, ends or fails."""
        sighting = _TURNS[kind]
        if sighting is Sighting.PING:
            return sighting
        event = decoded(data)
        if event is None:
            return Sighting.MALFORMED
        self._count(event)
        if sighting is Sighting.PREAMBLE:
            return self._ordinary()
        if sighting is Sighting.ERROR:
            self.failure = self.failure or failure_of(event)
        self.complete = self.complete or sighting is Sighting.END
        self._content_seen = True
        return sighting

    def _count(self, event: Mapping[str, object]) -> None:
        """`message_start` has its usage in the message; `message_delta`, beside the delta, the counts so far."""
        message = event.get("message")
        usage = message.get("usage") if isinstance(message, dict) else event.get("usage")
        self.tokens_in = count(self.tokens_in, usage, *_INPUT)
        self.tokens_out = count(self.tokens_out, usage, "output_tokens")


def _worded(error: GatewayError) -> dict[str, str]:
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": _ERROR_TYPES.get(error.status, usual), "message": error.message}


def error_body(error: GatewayError, request_id: str) -> bytes:
    """Anthropic's error answer."""
    return compact({"type": "error", "error": _worded(error), "request_id": request_id})


def failure_body(failure: Failure, request_id: str) -> bytes:
    """The upstream's error object as Anthropic's error answer."""
    return compact({"type": "error", "error": failure.error, "request_id": request_id})


ANTHROPIC = StreamProtocol(
    "anthropic", b'event: ping\ndata: {"type": "ping"}\n\n', MessagesWatcher, error_body, failure_body
)
