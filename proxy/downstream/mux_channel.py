"""A channel: one `rid` of a mux session. It follows a stream and frames it, within the client's window.

Which channel may write when the client is behind is the outlet's to say; what the stream is, the turn's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.downstream.mux_outlet import MuxOutlet
from proxy.errors import ClientError
from proxy.streams.backlog import FRAME_COST_BYTES
from proxy.streams.numbered import NumberedStream
from proxy.streams.store import KeptStream
from proxy.wire.frames import text_frame
from proxy.wire.mux_frames import Ending, Envelope, Form, refusal
from proxy.wire.sse import Event

UNBOUNDED: Final = 1 << 62


class TakenOver(ClientError):
    """Somebody else follows the stream now."""

    status = 409
    default_code = "taken_over"


class Channel:
    """One `rid`, from its start or resumption to its terminal frame. `on_over` is called once, at that.

    `window`: so many frames may be unacknowledged (None: any number). `kept` is the stream in the store, if it is one
    that stays. `cancel` stops the request behind it.
    """

    __slots__ = (
        "_acknowledged",
        "_envelope",
        "_numbered",
        "_on_over",
        "_outlet",
        "_over",
        "_window",
        "bytes_out",
        "cancel",
        "kept",
        "rid",
        "waiting_bytes",
    )

    def __init__(self, rid: str, outlet: MuxOutlet, window: int | None, on_over: Callable[[Channel], None]) -> None:
        self.rid = rid
        self.cancel: Callable[[str], None] = _nothing
        self.kept: KeptStream | None = None
        self.waiting_bytes = 0
        self.bytes_out = 0
        self._outlet = outlet
        self._window = UNBOUNDED if window is None else window
        self._acknowledged = 0
        self._on_over = on_over
        self._over = False
        self._numbered: NumberedStream | None = None
        self._envelope: Envelope | None = None
        outlet.channels += 1

    def follow(self, numbered: NumberedStream, form: Form, stage_id: str, after: int = 0) -> None:
        """Send what comes behind number `after`. Raises what `NumberedStream.follow` does."""
        self._numbered = numbered
        self._envelope = Envelope(self.rid, stage_id, form)
        self._acknowledged = after
        numbered.follow(self, after)

    def refuse(self, ending: Ending) -> None:
        """The request came to this end before it had a stream."""
        if not self._over:
            self._outlet.say(Envelope(self.rid, self.rid, Form.CHUNKS).terminal(ending, 1))
            self.leave()

    @property
    def is_over(self) -> bool:
        return self._over

    def acknowledge(self, seq: int) -> bool:
        """The client has taken in everything up to `seq`. Whether that was news."""
        if self._numbered is None or not self._acknowledged < seq <= self._numbered.taken:
            return False
        self._acknowledged = seq
        if self._numbered.taken < self._numbered.head:
            self._outlet.line_up(self, 0)
        return True

    def leave(self) -> None:
        """Send nothing more, and take nothing more."""
        if not self._over:
            self._over = True
            self._outlet.channels -= 1
            self._outlet.drop(self)
            if self._numbered is not None:
                self._numbered.leave(self)
            self._on_over(self)

    # ---- the stream's side (its follower) ----

    def take(self, events: list[Event], first: int) -> int:
        envelope = self._envelope
        assert envelope is not None
        if len(events) > 1:
            return self._take_several(events, first)
        if first > self._acknowledged + self._window:
            return 0
        event = events[0]
        payload = envelope.payload(event.data, event.type, first)
        if not self._outlet.send(payload):
            return 0
        self.bytes_out += len(payload)
        return 1

    def await_turn(self, more_bytes: int) -> bool:
        return self._outlet.line_up(self, more_bytes)

    def take_end(self, ending: Ending) -> bool:
        assert self._numbered is not None
        if self._numbered.head > self._acknowledged + self._window:
            return False
        self._outlet.say(self._terminal(ending))
        self.leave()
        return True

    def give_way(self) -> None:
        self._outlet.say(refusal(TakenOver("The stream goes on elsewhere: somebody resumed it."), rid=self.rid))
        self._numbered = None
        self.leave()

    # ---- the outlet's side ----

    @property
    def waits(self) -> bool:
        numbered = self._numbered
        return not self._over and numbered is not None and numbered.taken < numbered.head

    def next_payload(self) -> bytes | None:
        numbered, envelope = self._numbered, self._envelope
        if numbered is None or envelope is None or numbered.taken >= self._acknowledged + self._window:
            return None
        fetched = numbered.fetch(1)
        if not fetched:
            return self._last_payload(numbered)
        event = fetched[0]
        self._outlet.took(self, len(event.data) + FRAME_COST_BYTES)
        payload = envelope.payload(event.data, event.type, numbered.taken)
        self.bytes_out += len(payload)
        if not self.waits:
            numbered.drained()
        return payload

    def _take_several(self, events: list[Event], first: int) -> int:
        """All that the window lets through, in one write; or none, where the client is behind."""
        assert self._envelope is not None
        if self._outlet.behind:
            return 0
        payload = self._envelope.payload
        allowed = events[: max(self._acknowledged + self._window - first + 1, 0)]
        frames = [text_frame(payload(event.data, event.type, seq)) for seq, event in enumerate(allowed, first)]
        if frames:
            data = b"".join(frames)
            self.bytes_out += len(data)
            self._outlet.put(data)
        return len(allowed)

    def _last_payload(self, numbered: NumberedStream) -> bytes | None:
        ending = numbered.fetch_end()
        if ending is None:
            return None
        payload = self._terminal(ending)
        self.leave()
        return payload

    def _terminal(self, ending: Ending) -> bytes:
        assert self._numbered is not None
        assert self._envelope is not None
        payload = self._envelope.terminal(ending, self._numbered.head)
        self.bytes_out += len(payload)
        return payload


def _nothing(reason: str) -> None:
    """Nothing to stop yet."""
