"""The stream routes' events in bytes: a stage's id around each upstream chunk, as server-sent event and as text frame.

An upstream's bytes are spliced in as they are. Which events come when, and that one of them is the last, is
`streams.stages`'; whether a chunk is one JSON object is for who calls to know.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from proxy.wire.frames import one_line, text_payload
from proxy.wire.sse import Event

CHAT_CHUNK: Final = "chat_completion_chunk"
TOOL_CHUNK: Final = "tool_completion_chunk"
SUMMARY: Final = "tool_summary"
DONE: Final = "done"
CANCEL: Final = "cancel"
ERROR: Final = "error"

CHUNK_MEMBERS: Final = {CHAT_CHUNK: "chunk", TOOL_CHUNK: "tool_results"}
"""Where an upstream's chunk stands in an event's data, by the event's name."""

LONGEST_STAGE_ID: Final = 1024
"""In characters: it comes back in every event."""

_LF, _CR = b"\n\r"
_new = object.__new__


class StageWording:
    """How one stage's events read. Raises ValueError for an id that is none (`is_stage_id`).

    An event's `wire` is the server-sent event, its `data` the JSON object in it, its `id` `<stage_id>-chunk-<n>`.
    """

    __slots__ = ("_frame_id", "_id", "_opening", "stage_id")

    def __init__(self, stage_id: str) -> None:
        if not is_stage_id(stage_id):
            raise ValueError("a stage's id stands in one line, without control characters")
        quoted = json.dumps(stage_id).encode("ascii")
        self.stage_id = stage_id
        self._opening = b'{"stage_id":' + quoted
        self._id = f"{stage_id}-chunk-".encode()
        self._frame_id = quoted[:-1] + b"-chunk-"

    def chunks(self, kind: str) -> Callable[[bytes, int], Event]:
        """The maker of one kind's events, from an upstream's chunk and the event's number. KeyError for no such kind.

        The chunk is one JSON object in any bytes; its line ends become spaces.
        """
        head = self._opening + b',"%b":' % CHUNK_MEMBERS[kind].encode()
        first, type = self._id, kind.encode()
        line = b"\nevent: " + type + b"\ndata: "

        def event(chunk: bytes, number: int) -> Event:
            if _LF in chunk or _CR in chunk:
                chunk = one_line(chunk)
            made = _new(Event)  # without __init__, as the parser does
            made.id = id = b"%b%d" % (first, number)
            made.data = data = b"%b%b}" % (head, chunk)
            made.raw = made.wire = b"id: %b%b%b\n\n" % (id, line, data)
            made.type = type
            return made

        return event

    def event(self, kind: str, number: int, members: dict[str, object] | None = None) -> Event:
        """Any other event: the stage's id, and these members behind it."""
        data = self._opening + b"}"
        if members:
            data = self._opening + b"," + json.dumps(members, separators=(",", ":")).encode("ascii")[1:]
        id, type = b"%b%d" % (self._id, number), kind.encode()
        wire = b"id: %b\nevent: %b\ndata: %b\n\n" % (id, type, data)
        return Event(wire, wire, data, type, id)

    def whole(self, completion: bytes, *more: tuple[str, bytes]) -> bytes:
        """The answer in one piece: `{"stage_id","chat_completion",…}`, each member's value as JSON in bytes."""
        members = [(b"chat_completion", completion), *((name.encode(), value) for name, value in more)]
        return self._opening + b"".join([b',"%b":%b' % member for member in members]) + b"}"

    def frame_payload(self, event: Event) -> bytes:
        """An event of this stage as a text message: `{"event","id","data"}`, in UTF-8."""
        data = event.data if event.data.isascii() else _readable(event)
        number = event.id[len(self._id) :] if event.id is not None else b""
        return b'{"event":"%b","id":%b%b","data":%b}' % (event.type, self._frame_id, number, data)


def is_stage_id(text: str) -> bool:
    """Whether it can stand in an event's `id:` line: not too long, no control characters (C0, DEL, C1), and UTF-8."""
    return len(text) <= LONGEST_STAGE_ID and not any(_breaks_line(character) for character in text)


def _breaks_line(character: str) -> bool:
    return character < " " or "\x7f" <= character < "\xa0" or "\ud800" <= character <= "\udfff"


def _readable(event: Event) -> bytes:
    """The data; a chunk that is not UTF-8 written out in it as `{"raw":"..."}`."""
    try:
        event.data.decode()
    except UnicodeDecodeError:
        member = b',"%b":' % CHUNK_MEMBERS[event.type.decode()].encode()
        head, found, chunk = event.data.partition(member)  # a stage's id cannot hold the member: its quotes are escaped
        return head + found + text_payload(chunk[:-1]) + b"}"
    return event.data
