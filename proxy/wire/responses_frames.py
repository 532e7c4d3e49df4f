"""What the gateway says of its own in OpenAI's WebSocket mode of Responses, as payloads of text frames.

A model server's own events go out as they came; here they only get the lane they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Final

from proxy.errors import GatewayError, UpstreamError

_ERROR_TEXTS: Final = {"type": UpstreamError.default_type, "code": None, "message": "", "param": None}
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

NOTHING_USED: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def lane_member(stream_id: str | None) -> bytes:
    """How an object ends that belongs to this lane; b"" for the lane without a name."""
    return b"" if stream_id is None else b',"stream_id":%b}' % _encode(stream_id).encode("ascii")


def in_lane(payload: bytes, lane_member: bytes) -> bytes:
    """`payload`, one JSON object, with its lane as the last member: readers take that one, whatever it says before."""
    if not lane_member:
        return payload
    opened = payload.rstrip()[:-1].rstrip()
    return opened + (lane_member if opened[-1:] != b"{" else lane_member[1:])


def error_payload(error: GatewayError) -> bytes:
    """The gateway's own error."""
    described = {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
    retry_after = None if error.retry_after_s is None else str(ceil(error.retry_after_s))
    return refusal_payload(described, error.status, retry_after)


def refusal_payload(error: Mapping[str, object], status: int, retry_after: str | None = None) -> bytes:
    """An upstream's error object, with the status it answered and what its `Retry-After` said.

    Codex reads a frame as an error only if `status` is a number, and `code` and `message` are texts or null: else it
    waits for more. Model servers write numbers there.
    """
    headers = {} if retry_after is None else {"headers": {"retry-after": retry_after}}
    try:
        texts = {name: _as_text(error.get(name), absent) for name, absent in _ERROR_TEXTS.items()}
        frame = {"type": "error", "status": status, "error": {**error, **texts}, **headers}
        return _encode(frame).encode("ascii")
    except (ValueError, RecursionError):  # Python reads numbers that JSON does not have
        return refusal_payload({}, status, retry_after)


def warm_up_payloads(response_id: str, model: str, created_at: int) -> tuple[bytes, bytes]:
    """The answer to a request that generates nothing. `created_at`: seconds since the epoch."""
    response: dict[str, object] = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    completed = {**response, "status": "completed", "usage": NOTHING_USED}
    return _event(0, "response.created", response=response), _event(1, "response.completed", response=completed)


def told_in_events(response: Mapping[str, object]) -> Iterator[bytes]:
    """A response that came in one piece, as the fewest events that tell all of it."""
    output = response.get("output")
    items = output if isinstance(output, list) else []
    begun = {name: value for name, value in response.items() if name not in ("output", "usage")}
    yield _event(0, "response.created", response={**begun, "status": "in_progress", "output": []})
    for index, item in enumerate(items):
        yield _event(index + 1, "response.output_item.done", output_index=index, item=item)
    incomplete = response.get("status") == "incomplete"
    yield _event(len(items) + 1, "response.incomplete" if incomplete else "response.completed", response=response)


def _event(number: int, type: str, **members: object) -> bytes:
    return _encode({"type": type, "sequence_number": number, **members}).encode("ascii")


def _as_text(value: object, absent: str | None) -> str | None:
    if isinstance(value, str) or value is None:
        return absent if value is None else value
    return _encode(value)
