"""OpenAI's Responses: typed, numbered events around one response object; errors come in two spellings.

`response.failed` is this protocol's own end and a failure at once. It is sighted as ERROR, so that before any content
it is retried like any other, with `complete` set, so that after content nothing needs to be added to it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from proxy.protocols.event_data import compact, could_be_object, count, decoded, event_type, is_done
from proxy.protocols.failure import Failure, failure_of
from proxy.protocols.openai import error_body, failure_body
from proxy.protocols.protocol import RequestFacts, Sighting, StreamProtocol
from proxy.wire.sse import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.errors import GatewayError
    from proxy.wire.sse import Event

_CONTENT = Sighting.CONTENT
# All others are content.
_TURNS = {
    b"response.created": Sighting.PREAMBLE,
    b"response.queued": Sighting.PREAMBLE,
    b"response.in_progress": Sighting.PREAMBLE,
    b"response.output_item.added": Sighting.PREAMBLE,
    b"response.content_part.added": Sighting.PREAMBLE,
    b"response.reasoning_summary_part.added": Sighting.PREAMBLE,
    b"keepalive": Sighting.PING,
    b"response.completed": Sighting.END,
    b"response.incomplete": Sighting.END,
    b"response.failed": Sighting.ERROR,
    b"error": Sighting.ERROR,
}


class ResponsesWatcher:
    """Watches Responses events, named by their `event:` line or, without one, by the data's own `type`."""

    __slots__ = ("_content_seen", "_created", "_last", "_model", "complete", "failure", "tokens_in", "tokens_out")
    pattern: tuple[bytes, bytes] | None = None

    def __init__(self, request: RequestFacts) -> None:
        self.complete = False
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.failure: Failure | None = None
        self._content_seen = False
        self._model = request.value("model")
        # Kept as they came, and decoded only for a terminal error of ours.
        self._created = b""
        self._last = b""

    def observe(self, event: Event) -> Sighting:
        data = event.data
        if (data[:1] != b"{" or data[-1:] != b"}") and not could_be_object(data):
            # `[DONE]` means nothing here: some servers send it all the same.
            return self._ordinary() if is_done(data) else Sighting.MALFORMED
        self._last = data
        kind = event.type or event_type(data)
        if kind in _TURNS:
            return self._turn(kind, data)
        self._content_seen = True
        return _CONTENT

    def terminal_error(self, error: GatewayError) -> bytes:
        """`response.failed`: the response that was created, as far as it is known, under the next number."""
        created = (decoded(self._created) or {}).get("response")
        response = created if isinstance(created, dict) else _blank_response(self._model)
        last = (decoded(self._last) or {}).get("sequence_number")
        event = {
            "type": "response.failed",
            "sequence_number": last + 1 if isinstance(last, int) else 0,
            "response": {**response, "status": "failed", "error": {"code": error.code, "message": error.message}},
        }
        return encode(compact(event), b"response.failed")

    def _ordinary(self) -> Sighting:
        return _CONTENT if self._content_seen else Sighting.PREAMBLE

    def _turn(self, kind: bytes, data: bytes) -> Sighting:
        """Where the stream begins, rests, ends or fails."""
        sighting = _TURNS[kind]
        if sighting is Sighting.PING:
            return sighting
        if sighting is Sighting.PREAMBLE:
            if not self._created and b'"response"' in data:
                self._created = data
            return self._ordinary()
        event = decoded(data)
        if event is None:
            return Sighting.MALFORMED
        self._end(kind, event)
        return sighting

    def _end(self, kind: bytes, event: Mapping[str, object]) -> None:
        found = event.get("response")
        response = found if isinstance(found, dict) else {}
        usage = response.get("usage")
        self.tokens_in = count(self.tokens_in, usage, "input_tokens")
        self.tokens_out = count(self.tokens_out, usage, "output_tokens")
        self.complete = self.complete or kind != b"error"
        if kind == b"error":
            self.failure = self.failure or failure_of(event)
        elif kind == b"response.failed":
            self.failure = self.failure or failure_of({"error": response.get("error")})


def _blank_response(model: object) -> dict[str, object]:
    """The least that clients accept as a response, for a stream that broke before it named one."""
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": 0,
        "model": model if isinstance(model, str) else "",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


RESPONSES = StreamProtocol("responses", b": ping\n", ResponsesWatcher, error_body, failure_body)
