"""The writer of a Responses session: each lane's events as text frames, all those of one read in one write.

When the client is behind, the streams that have something for it are paused, each with its own first write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.downstream.session_socket import Socket
from proxy.downstream.spoken_outlet import SpokenOutlet
from proxy.errors import GatewayError, UpstreamError
from proxy.protocols.event_data import decoded, event_type, is_done
from proxy.protocols.failure import failure_of
from proxy.streams.conversations import Conversation, Unfolding
from proxy.streams.stream import Stream
from proxy.wire.frames import text_frame
from proxy.wire.json_object import object_payload, splices
from proxy.wire.responses_frames import in_lane, lane_member, refusal_payload
from proxy.wire.sse import Event

_CREATED: Final = b"response.created"
_ITEM_DONE: Final = b"response.output_item.done"
_ENDS: Final = (b"response.completed", b"response.incomplete")
_ERROR: Final = b"error"
_NOTED: Final = frozenset((_CREATED, _ITEM_DONE, *_ENDS, _ERROR))
"""The events that mean something to the session; all others only pass."""


class ResponsesOutlet(SpokenOutlet):
    """One client's transport, and the streams that flow into it."""

    __slots__ = ("_streams",)

    def __init__(self, socket: Socket) -> None:
        super().__init__(socket)
        self._streams: set[Stream] = set()

    @property
    def full(self) -> bool:
        return self._full

    def join(self, stream: Stream) -> None:
        """Tell this stream too when the client has caught up. The caller's duty: `part`."""
        self._streams.add(stream)

    def part(self, stream: Stream) -> None:
        self._streams.discard(stream)

    def _change(self, paused: bool) -> None:
        super()._change(paused)
        if not paused:
            for stream in list(self._streams):
                stream.drained()


class ResponseFrames:
    """One response in its lane, and the listener of its stream. `begun`: some of it has gone out, in `bytes_out`."""

    __slots__ = (
        "_created",
        "_finished",
        "_keep",
        "_lane_member",
        "_on_malformed",
        "_outlet",
        "_unfolding",
        "begun",
        "bytes_out",
    )

    def __init__(self, outlet: ResponsesOutlet, stream_id: str | None) -> None:
        self._outlet = outlet
        self._lane_member = lane_member(stream_id)
        self._created = b""
        self.begun = False
        self.bytes_out = 0

    def follow(
        self,
        stream: Stream,
        unfolding: Unfolding,
        *,
        keep: Callable[[Conversation], None],
        on_malformed: Callable[[], None],
    ) -> asyncio.Future[GatewayError | None]:
        """Give the client all of `stream`; how it ended will be the result. `keep` gets the conversation once the
        response is whole, `on_malformed` is told of each event that is dropped. Once only; the caller's duty: `part`.
        """
        self._finished: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
        self._unfolding = unfolding
        self._keep = keep
        self._on_malformed = on_malformed
        self._outlet.join(stream)
        stream.attach(self)
        return self._finished

    def part(self, stream: Stream) -> None:
        """The stream is over, or nobody wants the rest."""
        self._outlet.part(stream)

    @property
    def response_id(self) -> object:
        """The response's id, or None as long as it is not known."""
        response = (decoded(self._created) or {}).get("response")
        return response.get("id") if isinstance(response, dict) else None

    def say(self, payload: bytes) -> None:
        """A frame of the gateway's own in this lane."""
        self.bytes_out += self._outlet.say(in_lane(payload, self._lane_member))

    # ---- the stream's side ----

    def write(self, events: list[Event]) -> bool:
        frames = []
        lane_member = self._lane_member
        for event in events:
            data = event.data
            payload = data if splices(data) else object_payload(data, known=True)
            if payload is None:
                if not is_done(data):
                    self._on_malformed()
                continue
            kind = event.type or event_type(data)
            if kind in _NOTED:
                payload = self._note(kind, payload)
            frames.append(text_frame(in_lane(payload, lane_member) if lane_member else payload))
        if not frames:
            return self._outlet.full
        self.begun = True
        written = frames[0] if len(frames) == 1 else b"".join(frames)
        self.bytes_out += len(written)
        return self._outlet.put(written)

    def end(self, error: GatewayError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(error)

    def _note(self, kind: bytes, payload: bytes) -> bytes:
        """What goes out of an event that means something to us."""
        if kind == _ERROR:
            return wrapped(payload)
        if kind == _CREATED:
            self._created = payload
        elif kind == _ITEM_DONE:
            self._unfolding.item_done(payload)
        else:
            conversation = self._unfolding.over(payload)
            if conversation is not None:
                self._keep(conversation)
        return payload


def wrapped(payload: bytes) -> bytes:
    """An error event as clients of a WebSocket read one: with a status, and the error in a member of its own."""
    failure = failure_of(decoded(payload) or {})
    return refusal_payload(failure.error, failure.status or UpstreamError.status)
