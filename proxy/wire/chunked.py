"""The chunked coding of a body (RFC 9112, 7.1), taken off: bytes of any cut in, the body's own bytes out.

Strict, since what comes after a mistake could be anything: sizes are hexadecimal digits and nothing else, lines end in
CR LF, nothing follows the end. Extensions and trailers are checked for control characters and dropped.
"""

from __future__ import annotations

import re

MOST_SIZES = 4096
"""So many sizes are remembered in their written form."""
_MOST_DIGITS = 15
_CRLF = b"\r\n"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:;" + _TEXT + rb")?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:" + _TEXT)

_sizes: dict[bytes, int] = {}

known_size = _sizes.get
"""The size that a chunk's first line says, without its line end; None for one that was not seen yet, or is no size.

Between two chunks whoever reads may take a chunk that comes whole and alone; everything else is `ChunkedBody.feed`'s.
"""


class ChunkingError(ValueError):
    """The bytes are not a chunked body; what follows them is nobody's."""


class ChunkedBody:
    """One body. `ended`: its last chunk and the trailers are read. `between_chunks`: the next byte begins a chunk."""

    __slots__ = ("_in_trailers", "_left", "_line", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # bytes of the chunk that are still to come, its line end among them
        self._line = b""  # of a size or a trailer, as far as it came
        self._in_trailers = False

    @property
    def between_chunks(self) -> bool:
        return not (self._left or self._line or self._in_trailers)

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        """Append the body's bytes in `data` to `pieces`. Raises `ChunkingError`, with what came before in `pieces`."""
        at = 0
        while at < len(data):
            if self.ended:
                raise ChunkingError("bytes after the end of the body")
            at = self._take_data(data, at, pieces) if self._left else self._take_line(data, at)

    def _take_data(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        end = min(at + self._left, len(data))
        size = min(self._left - 2, end - at)
        if size > 0:
            pieces.append(data[at : at + size])
            self._left -= size
            at += size
        while at < end:
            if data[at] != _CRLF[2 - self._left]:
                raise ChunkingError("a chunk is longer than its size")
            self._left -= 1
            at += 1
        return end

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        self._line += data[at : end or len(data)]
        if not end:
            return len(data)
        line, self._line = self._line, b""
        if line[-2:] != _CRLF:
            raise ChunkingError("a line does not end in CR LF")
        if self._in_trailers:
            self._end_trailer(line[:-2])
        else:
            self._begin_chunk(line[:-2])
        return end

    def _begin_chunk(self, line: bytes) -> None:
        size = _sizes.get(line)
        if size is None:
            size = _read_size(line)
        if size:
            self._left = size + len(_CRLF)
        else:
            self._in_trailers = True

    def _end_trailer(self, line: bytes) -> None:
        if not line:
            self.ended = True
        elif _TRAILER.fullmatch(line) is None:
            raise ChunkingError("a trailer is no header line")


def _read_size(line: bytes) -> int:
    found = _SIZE_LINE.fullmatch(line)
    if found is None or len(found[1]) > _MOST_DIGITS:
        raise ChunkingError("a chunk's size is no hexadecimal number")
    size = int(found[1], 16)
    if found[1] == line and size and len(_sizes) < MOST_SIZES:
        _sizes[line] = size
    return size
