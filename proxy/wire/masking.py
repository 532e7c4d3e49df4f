"""Whether a client masks its WebSocket frames, as RFC 6455 (5.1) demands: the parser in use does not say.

Looks at frame heads only, however the bytes are cut; what is in the frames is read elsewhere.
"""

from __future__ import annotations

_LENGTH_BYTES = {126: 2, 127: 8}
_MASK_BYTES = 4


class MaskWatch:
    """Follows one client's frames: a head of two bytes, an extended length, four bytes of mask, then the payload."""

    __slots__ = ("_head", "_skip_bytes")

    def __init__(self) -> None:
        self._head = bytearray()
        self._skip_bytes = 0

    def all_masked(self, data: bytes) -> bool:
        """Whether every frame that begins in `data` is masked. After a False nothing more is known."""
        at = 0
        while True:
            skipped = min(self._skip_bytes, len(data) - at)
            self._skip_bytes -= skipped
            at += skipped
            if at == len(data):
                return True
            self._head.append(data[at])
            at += 1
            if len(self._head) >= 2 and not self._head[1] & 0x80:
                return False
            self._end_head()

    def _end_head(self) -> None:
        """Once the head is whole, skip its mask and its payload."""
        if len(self._head) < 2:
            return
        length = self._head[1] & 0x7F
        extended = _LENGTH_BYTES.get(length, 0)
        if len(self._head) < 2 + extended:
            return
        if extended:
            length = int.from_bytes(self._head[2:])
        self._skip_bytes = _MASK_BYTES + length
        self._head.clear()
