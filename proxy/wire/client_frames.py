"""What the heads of a client's WebSocket frames tell, however the bytes are cut: whether it masks them, which RFC 6455
(5.1) demands and the parser in use does not look at, and whether it sends more of them than anybody has a use for.

What is in the frames is read elsewhere; what a client that breaks a rule is told, too.
"""

from __future__ import annotations

import enum
from typing import Final

IDLE_AT_ONCE: Final = 1000
IDLE_A_SECOND: Final = 100.0
"""Frames that bring next to nothing: pings, pongs, fragments of a few bytes. A client that sends a message in pieces
sends larger ones; one that asks whether we live asks now and then. Each costs us, and so its neighbours, 5 µs."""
SMALL_BYTES: Final = 64
_CONTINUES: Final = 0x08
"""Opcodes below this one carry a message, the others control the connection."""
_WHOLE: Final = (0x81, 0x82)
_EXTENDED_BYTES: Final = {126: 2, 127: 8}
_MASK_BYTES: Final = 4


class Broken(enum.Enum):
    """The rule that a client's frames break."""

    UNMASKED = "unmasked"
    TOO_MANY = "too_many_frames"
    TOO_LARGE = "message_too_large"


class FrameWatch:
    """Follows one client's frames: a head of two bytes, an extended length, four bytes of mask, then the payload.

    `first_bytes`: the most that its first message may have, while nobody knows who it is (None: as much as any).
    """

    __slots__ = ("_at", "_first_left", "_head", "_idle_left", "_skip_bytes")

    def __init__(self, now: float, first_bytes: int | None = None) -> None:
        self._head = b""  # the beginning of one that has not come whole
        self._skip_bytes = 0
        self._first_left = first_bytes
        self._idle_left = float(IDLE_AT_ONCE)
        self._at = now

    def look(self, data: bytes, now: float) -> Broken | None:
        """The rule that a frame in `data`, read at `now`, breaks. After one of them nothing more is known."""
        at, size = self._skip_bytes, len(data)
        if at >= size:
            self._skip_bytes = at - size
            return None
        if self._head:
            data, self._head = self._head + data, b""
            size = len(data)
        idle = 0
        while at + 2 <= size:  # 0.3 µs a frame
            first, length = data[at], data[at + 1] - 0x80
            if length < 0:
                return Broken.UNMASKED
            begin = at + 2
            if length > 125:
                begin += _EXTENDED_BYTES[length]
                if begin > size:
                    break
                length = int.from_bytes(data[at + 2 : begin])
            if first not in _WHOLE and (first & _CONTINUES or length < SMALL_BYTES):
                idle += 1
                if idle > IDLE_AT_ONCE:
                    return Broken.TOO_MANY
            if self._first_left is not None and not first & _CONTINUES and self._overflows(first, length):
                return Broken.TOO_LARGE
            at = begin + _MASK_BYTES + length
        self._skip_bytes = max(at - size, 0)
        self._head = data[at:]
        return Broken.TOO_MANY if idle and self._is_flood(idle, now) else None

    def _overflows(self, first: int, length: int) -> bool:
        """Whether the first message is too large with this frame."""
        assert self._first_left is not None
        self._first_left -= length
        if self._first_left < 0:
            return True
        if first & 0x80:
            self._first_left = None
        return False

    def _is_flood(self, idle: int, now: float) -> bool:
        self._idle_left = min(IDLE_AT_ONCE, self._idle_left + (now - self._at) * IDLE_A_SECOND) - idle
        self._at = now
        return self._idle_left < 0
