"""A kept stream as server-sent events: each under its number as `id:`, the same for whoever follows it, and whenever.

The numbers and the events are `numbered`'s; who may follow which stream is `store`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from proxy.errors import ClientError, GatewayError, InvalidRequest
from proxy.protocols import endpoints
from proxy.protocols.event_data import compact
from proxy.streams.stages import sentence, worded
from proxy.wire.mux_frames import STAGE_MEMBERS, Ending, Form
from proxy.wire.sse import Event, encode
from proxy.wire.stages import StageWording

MOST_DIGITS: Final = 18
_DONE: Final = b"[DONE]"


class Stopped(ClientError):
    """Somebody stopped the stream: a `DELETE`, a `cancel`, or that nobody came back to it in time."""

    status = 499
    default_code = "cancelled"


class Replayed:
    """How one stream reads over HTTP. `path` is the endpoint it was asked for at.

    A stage's ids are its own, `<stage_id>-chunk-<n>`, with n one less than the number.
    """

    __slots__ = ("_first", "_form", "_lines", "_stage", "_stage_id", "path")

    def __init__(self, path: str, form: Form, stage_id: str) -> None:
        self.path = path
        self._form = form
        self._stage_id = stage_id
        self._stage = StageWording(stage_id) if form is Form.STAGES else None
        self._first = b"id: %b-chunk-" % stage_id.encode()
        opening = b'{"stage_id":' + json.dumps(stage_id).encode("ascii")
        self._lines = {} if self._stage is None else {type.encode(): _line(type, opening) for type in STAGE_MEMBERS}

    def events(self, events: list[Event], first: int) -> list[Event]:
        """Events numbered from `first` as they go out. Their data is one line.

        A stage has numbered its events itself: as long as they have its wire, and not only their data, they are ready.
        """
        if self._stage is None:
            return [self._plain(event, seq) for seq, event in enumerate(events, first)]
        of_stage = self._of_stage
        return [of_stage(event, seq) if event.wire is event.data else event for seq, event in enumerate(events, first)]

    def last_words(self, ending: Ending, seq: int) -> bytes | None:
        """The event that tells of the end; b"" where the ones before have told, None where the body is to be cut."""
        if self._stage is not None:
            return self._stage_end(self._stage, ending, seq)
        if ending.type == "done":
            return _numbered(encode(_DONE), seq) if self._form is Form.CHUNKS else b""
        if ending.event is not None:
            return _numbered(ending.event, seq) if ending.event else b""
        words = self.error(Stopped(f"The stream was stopped ({ending.data.get('reason', 'failure')})."))
        return _numbered(words, seq) if words else None

    def error(self, error: GatewayError) -> bytes | None:
        """An error in the stream that has no number: of this follower only. None where the body is to be cut."""
        if self._stage is not None:
            return encode(compact({"stage_id": self._stage_id, "error": sentence(error)}), b"error")
        return endpoints.for_path(self.path).watcher(_Streaming()).terminal_error(error) or None

    def is_over(self, ending: Ending | None, head: int, after: int) -> bool:
        """Whether one who has seen the events up to number `after` has nothing more to hear."""
        if ending is None:
            return False
        return after >= head or (after == head - 1 and self.last_words(ending, head) == b"")

    def number(self, id: str) -> int:
        """The number that an event's id stands for. Raises InvalidRequest."""
        number, offset = id, 0
        if self._stage is not None and id.startswith(f"{self._stage_id}-chunk-"):
            number, offset = id[len(self._stage_id) + len("-chunk-") :], 1
        if not (number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS):
            raise InvalidRequest("Give an event's id of this stream, in `Last-Event-ID` or `after`.", param="after")
        return int(number) + offset

    # ---- within ----

    def _plain(self, event: Event, seq: int) -> Event:
        name = b"result" if self._form is Form.RESULT else event.type
        data = event.data
        wire = b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, name, data) if name else b"id: %d\ndata: %b\n\n" % (seq, data)
        return Event(wire, wire, data, name)

    def _of_stage(self, event: Event, seq: int) -> Event:
        wire = b"%b%d%b%b}\n\n" % (self._first, seq - 1, self._lines[event.type], event.data)
        return Event(wire, wire, event.data, event.type)

    def _stage_end(self, stage: StageWording, ending: Ending, seq: int) -> bytes:
        error = ending.data.get("error")
        members: dict[str, object] | None = {"error": _sentence(error)} if isinstance(error, Mapping) else None
        return stage.event(ending.type, seq - 1, members).wire


def _line(type: str, opening: bytes) -> bytes:
    """What stands between the number of a stage's event and what it carries."""
    return b'\nevent: %b\ndata: %b,"%b":' % (type.encode(), opening, STAGE_MEMBERS[type].encode())


def _sentence(error: Mapping[str, object]) -> str:
    return worded(*(str(error.get(member)) for member in ("message", "type", "code")))


def _numbered(event: bytes, seq: int) -> bytes:
    return b"id: %d\n%b" % (seq, event)


class _Streaming:
    """What is left to know of a request whose stream is over."""

    stream = True

    def value(self, name: str, default: object = None) -> object:
        return default

    def opening(self, name: str) -> bytes:
        return b""
