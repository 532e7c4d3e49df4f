"""Ready-made WebSocket frames from server to client (RFC 6455: unmasked, one frame a message) and what goes in them.

Reading a client's frames, the handshake and who says what in a dialect are the sessions' in `downstream`.
"""

from __future__ import annotations

import json
from struct import Struct

_TEXT = 0x81  # FIN and opcode
_CLOSE = 0x88
_PING = 0x89
_PONG = 0x8A
_MAX_CONTROL_BYTES = 125
_LF, _CR = b"\n\r"
_short = Struct("!BB").pack
_medium = Struct("!BBH").pack
_long = Struct("!BBQ").pack
_close_code = Struct("!H").pack


def text_frame(payload: bytes) -> bytes:
    """One text message. `payload` must be UTF-8, which is not checked here (`text_payload` sees to it)."""
    size = len(payload)
    if size < 126:
        return _short(_TEXT, size) + payload
    return _medium(_TEXT, 126, size) + payload if size < 65536 else text_frame_head(size) + payload


def text_frame_head(size_bytes: int) -> bytes:
    """What stands in front of a text message's payload."""
    if size_bytes < 126:
        return _short(_TEXT, size_bytes)
    if size_bytes < 65536:
        return _medium(_TEXT, 126, size_bytes)
    return _long(_TEXT, 127, size_bytes)


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; a reason of more than 123 bytes is cut between two characters. ValueError on a code out of range.

    1005, 1006 and 1015 say what happened without a close frame and never stand in one.
    """
    if not 1000 <= code <= 4999 or code in (1004, 1005, 1006, 1015):
        raise ValueError(f"{code} is no close code")
    text = reason.encode("utf-8", "replace")[: _MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore")
    payload = _close_code(code) + text.encode()
    return _short(_CLOSE, len(payload)) + payload


def ping_frame(payload: bytes = b"") -> bytes:
    """A ping of at most 125 bytes (ValueError)."""
    if len(payload) > _MAX_CONTROL_BYTES:
        raise ValueError("a ping carries at most 125 bytes")
    return _short(_PING, len(payload)) + payload


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping that carried this."""
    return _short(_PONG, len(payload)) + payload


def one_line(data: bytes) -> bytes:
    """`data` with each line end (LF, CR, CRLF) as one space; the same object when there is none."""
    if _LF in data or _CR in data:  # numbers: half the price of bytes in CPython 3.11
        return data.replace(b"\r\n", b" ").replace(b"\n", b" ").replace(b"\r", b" ")
    return data


def text_payload(data: bytes) -> bytes:
    r"""What a text frame carries for an event's data: one line of valid UTF-8, mostly `data` itself.

    Bytes that are no UTF-8 go in as `{"raw":"..."}`: each offending byte is written out as the four characters `\xNN`
    (Python's "backslashreplace"; backslashes that were there stay single), then the whole is escaped as a JSON string.
    """
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            shown = data.decode("utf-8", "backslashreplace")
            return b'{"raw":' + json.dumps(shown, ensure_ascii=False).encode() + b"}"
    return one_line(data)
