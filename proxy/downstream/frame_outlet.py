"""A WebSocket's outlet: a stream's events as text frames, those of one read in one write.

Each frame is one JSON object of the upstream's, or it does not go out. What a session says besides is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.downstream.outlet import LARGE_BYTES
from proxy.downstream.spoken_outlet import SpokenOutlet
from proxy.errors import GatewayError
from proxy.protocols.event_data import is_done
from proxy.streams.stream import Stream
from proxy.wire.frames import text_frame, text_frame_head
from proxy.wire.json_object import object_payload, splices
from proxy.wire.sse import Event


class FrameOutlet(SpokenOutlet):
    """A socket's outlet, and the listener of the stream that it follows."""

    __slots__ = ("_finished", "_on_malformed")

    def follow(self, stream: Stream, on_malformed: Callable[[], None]) -> asyncio.Future[GatewayError | None]:
        """Give the client all of `stream`; how it ended will be the result. `on_malformed` is told of each event that
        is dropped. The caller's duty: `serve(None)` when it is over."""
        self._finished: asyncio.Future[GatewayError | None] = self._loop.create_future()
        self._on_malformed = on_malformed
        self.serve(stream)
        stream.attach(self)
        return self._finished

    def write(self, events: list[Event]) -> bool:
        data = events[0].data
        if len(events) > 1 or not splices(data):
            return self._write_any(events)
        transport, now = self._transport, self._now
        if transport is None or transport.is_closing():
            return False
        if len(data) > LARGE_BYTES:
            return self.put_pieces(text_frame_head(len(data)), data)
        frame = text_frame(data)
        self._last_put = now()
        self.bytes_out += len(frame)
        transport.write(frame)
        return self._full

    def end(self, error: GatewayError | None) -> None:
        if not self._finished.done():
            self._finished.set_result(error)

    def _write_any(self, events: list[Event]) -> bool:
        frames = []
        for event in events:
            data = event.data
            payload = data if splices(data) else object_payload(data, known=True)
            if payload is not None:
                frames.append(text_frame(payload))
            elif not is_done(data):
                self._on_malformed()
        return self.put(b"".join(frames)) if frames else self._full
