"""The bare WebSocket dialect: the request's body as one text message, each event's data as one text frame, `[DONE]`.

What a client's message is, and how an error reads, in bytes. Who may send what when is the session's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from proxy.errors import GatewayError, UpstreamError

DONE = b"[DONE]"
CANCELLED = b'{"type":"cancel"}'
_LONGEST_CANCEL = 256


def is_cancel(message: str) -> bool:
    """Whether a client's message asks to stop what runs: `{"type":"cancel"}`, however it is spaced."""
    if len(message) > _LONGEST_CANCEL or '"cancel"' not in message:
        return False
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("type") == "cancel" and "model" not in value


def error_payload(error: GatewayError) -> bytes:
    """The gateway's own error: `{"error":{"message","type","param","code"},"status":429}`."""
    described = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return _payload(described, error.status)


def failure_payload(error: Mapping[str, object], status: int) -> bytes:
    """An upstream's error object, with the status it answered."""
    return _payload(error, status)


def unexplained(status: int) -> Mapping[str, object]:
    """An error object for an upstream's answer that has none."""
    message = f"The model server answered with status {status}."
    return {"message": message, "type": UpstreamError.default_type, "param": None, "code": None}


def _payload(error: Mapping[str, object], status: int) -> bytes:
    return json.dumps({"error": error, "status": status}, separators=(",", ":")).encode("ascii")
