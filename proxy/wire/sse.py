"""Server-sent events: bytes of any cut in, whole events with their bytes kept out (WHATWG HTML, "Server-sent events").

What an event means (its content, a stream's end, an error) belongs to `protocols`; numbering belongs to `streams`.
Bytes are split, never text: U+2028 and U+0085 end no line, and an event may be cut inside a UTF-8 character.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"
_LINE_ENDS = b"\r\n"
_BLANK_LINES = (b"\n", b"\r\n", b"\r")
_NOT_PASSED_ON = (b":", _BOM)  # a field named with a byte order mark is unknown here, but known to who reads it first
_RETRY_DIGITS = 15  # more is no waiting time, and `int` refuses thousands of them


class EventTooLarge(ValueError):
    """An event, together with what nobody needs in front of it, is over its limit; its parser is of no further use.

    `events` are the whole events that came before it in the same read.
    """

    def __init__(self, limit_bytes: int, events: list[Event]) -> None:
        super().__init__(f"an event is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes
        self.events = events


@dataclass(slots=True)
class Event:
    """One dispatched event.

    raw: its bytes as they came, after whatever since the last event dispatched nothing (comments, blank lines, events
        without data). All raws and then `Parser.pending` are the input, less a byte order mark.
    wire: what goes on downstream: its own lines and its own blank line, byte for byte, without comments (which openai-
        python cannot digest once it saw an id). Mostly the same object as `raw`.
    data: the data lines joined by LF, each less one leading space.
    type: the event field, b"" where the standard says "message".
    id: this event's own id field; None if it has none, or one with a NUL.
    """

    raw: bytes
    wire: bytes
    data: bytes
    type: bytes = b""
    id: bytes | None = None


_new = object.__new__


def plain_event(raw: bytes, data: bytes, type: bytes = b"") -> Event:
    """An event that is nothing but `raw`, without an id."""
    event = _new(Event)  # without __init__: 160 ns instead of 275
    event.raw = event.wire = raw
    event.data = data
    event.type = type
    event.id = None
    return event


class Parser:
    """Takes reads, gives the events each one completes. What it holds of earlier reads it does not search again.

    An LF that follows a CR at the end of a read belongs to the `raw` of the next event, though not to its `wire`.
    """

    __slots__ = ("_after_cr", "_before", "_begun", "_block", "_head", "between_events", "max_event_bytes", "retry_ms")

    def __init__(self, max_event_bytes: int) -> None:
        self.max_event_bytes = max_event_bytes
        self.retry_ms: int | None = None  # the last valid `retry` field of the stream
        self._begun = False  # the stream's first bytes are judged: byte order mark or not
        self._head = b""  # what may become a byte order mark
        self._before = bytearray()  # bytes since the last event that dispatch nothing
        self._block = bytearray()  # the lines, the last one perhaps half, since the last blank line
        self._after_cr = False  # the last byte was a CR: one LF is still part of that line end
        self.between_events = False
        """Nothing of the above is left over: an event alone in the next read is known by its own bytes."""

    @property
    def unfinished(self) -> bool:
        """Whether the input ends inside an event; comments and blank lines alone are none."""
        return any(not line.startswith(b":") for line in self._block.splitlines()) or bool(self._head)

    @property
    def pending(self) -> bytes:
        """The bytes that belong to no event yet."""
        return self._head + bytes(self._before) + bytes(self._block)

    def feed(self, data: bytes) -> list[Event]:
        """The events `data` completes, in order; often none. Raises EventTooLarge. Any bytes are a sign of life."""
        # Sliced, split and `int in bytes`: in CPython 3.11 a call of `find` or `startswith` costs five times as much.
        if self.between_events and data[-2:] == b"\n\n" and _CR not in data and len(data) <= self.max_event_bytes:
            if data[:6] == b"data: ":
                payload = data[6:-2]
                if _LF not in payload:  # by far the commonest read
                    return [plain_event(data, payload, b"")]
                payloads = payload.split(b"\n\ndata: ")
                if _LF not in b"".join(payloads):
                    return [plain_event(b"data: " + each + b"\n\n", each, b"") for each in payloads]
            elif data[:7] == b"event: ":
                name, found, payload = data[7:-2].partition(b"\ndata: ")
                if found and _LF not in payload and _LF not in name:
                    return [plain_event(data, payload, name)]
        return self._feed(data)

    def finish(self) -> Event | None:
        """At the end of the input: the event that only a blank line is missing from; `wire` has one.

        The standard drops it, and so should a caller who cannot tell that it is whole (`[DONE]` without a blank line).
        """
        events = self._feed(b"\n\n") if self.unfinished else []
        return events[0] if events else None

    def _feed(self, data: bytes) -> list[Event]:
        if not self._begun:
            data = self._begin(data)
        if self._after_cr and data:
            data = self._swallow_lf(data)
        events: list[Event] = []
        if data:
            eol = self._only_line_end(data)
            if eol is None:
                self._feed_mixed(data, events)
            elif self._block:
                self._finish_block(data, events)
            else:
                self._feed_even(data, eol, events)
        held_bytes = len(self._before) + len(self._block)
        if held_bytes > self.max_event_bytes:
            raise EventTooLarge(self.max_event_bytes, events)
        self.between_events = self._begun and not (held_bytes or self._after_cr)
        return events

    def _begin(self, data: bytes) -> bytes:
        data = self._head + data
        self._begun = not _BOM.startswith(data) or data == _BOM
        self._head = b"" if self._begun else data
        return data.removeprefix(_BOM) if self._begun else b""

    def _swallow_lf(self, data: bytes) -> bytes:
        self._after_cr = False
        if data[0] != _LF:
            return data
        held = self._block or self._before
        held += b"\n"
        return data[1:]

    def _only_line_end(self, data: bytes) -> bytes | None:
        """The one kind of line end in `data`; None for a mixture, and for what needs a closer look."""
        if len(self._before) + len(data) > self.max_event_bytes:
            return None
        if _CR not in data:
            return b"\n"
        if not self._block and data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n"):
            return b"\r\n"
        return None

    def _finish_block(self, data: bytes, events: list[Event]) -> None:
        """Goes on with the block of earlier reads. No CR in `data`."""
        if data[0] == _LF and self._block[-1] in _LINE_ENDS:
            end = 1
        else:
            end = data.find(b"\n\n") + 2
            if end < 2:
                self._block += data
                return
        self._block += data[:end]
        self._end_block(events)
        if end < len(data):
            self._feed_even(data[end:], b"\n", events)

    def _feed_even(self, data: bytes, eol: bytes, events: list[Event]) -> None:
        """The way of reads that begin between two events and have one kind of line end; they may end anywhere."""
        before, blank = self._before, eol + eol
        lines = data.split(eol)
        half = lines[-1]
        lines[-1] = b"?"  # not blank, and of no field
        at, end = 0, len(lines) - 1
        while at < end:
            line = lines[at]
            if line[:6] == b"data: " and not lines[at + 1]:
                event = plain_event(line + blank, line[6:], b"")
                at += 2
            elif line[:7] == b"event: " and lines[at + 1][:6] == b"data: " and not lines[at + 2]:
                event = plain_event(line + eol + lines[at + 1] + blank, lines[at + 1][6:], line[7:])
                at += 3
            elif not line:
                before += eol
                at += 1
                continue
            else:
                try:
                    blank_at = lines.index(b"", at)
                except ValueError:
                    break
                self._block += eol.join(lines[at:blank_at]) + blank
                self._end_block(events)
                at = blank_at + 1
                continue
            if before:
                event.raw = bytes(before) + event.wire
                before.clear()
            events.append(event)
        lines[-1] = half
        self._block += eol.join(lines[at:])

    def _feed_mixed(self, data: bytes, events: list[Event]) -> None:
        """The way of every other read: LF, CR and CRLF as they come, events of any size."""
        at_line_start = not self._block or self._block[-1] in _LINE_ENDS
        for line in data.splitlines(keepends=True):
            if not (at_line_start and line in _BLANK_LINES):
                self._block += line
            elif self._block:
                self._block += line
                self._end_block(events)
            else:
                self._before += line
            at_line_start = True  # of all but the last line, which ends the loop
        self._after_cr = data[-1] == _CR

    def _end_block(self, events: list[Event]) -> None:
        """Dispatches the event that `_block`, complete now, makes if it has data."""
        block = bytes(self._block)
        self._block = bytearray()
        if len(self._before) + len(block) > self.max_event_bytes:
            raise EventTooLarge(self.max_event_bytes, events)
        event = _only_data(block) or self._read_fields(block)
        if event is None:
            self._before += block
            return
        if self._before:
            event.raw = bytes(self._before) + block
            self._before.clear()
        events.append(event)

    def _read_fields(self, block: bytes) -> Event | None:
        data: list[bytes] = []
        event_type = b""
        event_id: bytes | None = None
        has_comments = False
        for line in block.splitlines():
            colon = line.find(b":")
            name = line[:colon] if colon >= 0 else line
            value = b"" if colon < 0 else line[colon + 2 if line.startswith(b" ", colon + 1) else colon + 1 :]
            if name == b"data":
                data.append(value)
            elif name == b"event":
                event_type = value
            elif name == b"id":
                event_id = event_id if b"\0" in value else value
            elif name == b"retry":
                if value.isdigit() and len(value) <= _RETRY_DIGITS:
                    self.retry_ms = int(value)
            elif line.startswith(_NOT_PASSED_ON):
                has_comments = True
        if not data:
            return None
        wire = _without_comments(block) if has_comments else block
        return Event(block, wire, data[0] if len(data) == 1 else b"\n".join(data), event_type, event_id)


def _only_data(block: bytes) -> Event | None:
    """The event of one data line and nothing else: most of those that come in several reads. Of ten megabytes each
    copy counts, so their lines are not split."""
    if block[:6] == b"data: " and block[-2:] == b"\n\n" and _CR not in block and block.find(b"\n") == len(block) - 2:
        return plain_event(block, block[6:-2])
    return None


def encode(data: bytes, type: bytes = b"", id: bytes | None = None) -> bytes:
    """An event of our own. `data` of several lines becomes several data lines; `type` and `id` are one line each."""
    head = b""
    if id is not None:
        head = b"id: " + _one_line(id) + b"\n"
    if type:
        head += b"event: " + _one_line(type) + b"\n"
    if _CR in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if _LF in data:
        data = data.replace(b"\n", b"\ndata: ")
    return head + b"data: " + data + b"\n\n"


def _one_line(value: bytes) -> bytes:
    if _LF in value or _CR in value or 0 in value:
        raise ValueError("an event's type and id are one line each, without NUL")
    return value


def _without_comments(block: bytes) -> bytes:
    lines = [line for line in block.splitlines(keepends=True) if not line.startswith(_NOT_PASSED_ON)]
    if lines[-1] == b"\n" and lines[-2].endswith(b"\r"):
        lines[-1] = b"\r\n"  # a comment stood between the two: they must not become one line end
    return b"".join(lines)
