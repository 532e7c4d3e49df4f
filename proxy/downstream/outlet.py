"""An outlet: where pushed bytes leave for one client. It tells when the reader is behind, and breaks long silences.

What the bytes are (chunks, frames) is its owner's; giving up on a reader that has stopped, the connection's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.downstream.client_socket import ClientSocket
from proxy.streams.stream import Stream

LARGE_BYTES = 256 * 1024
"""From here on it costs less to write in pieces than to copy them into one."""


class Outlet:
    """One client's transport. `bytes_out` counts what was put. The owner's duty: `close` it.

    What a stream has is pushed in the subclasses' `write`: each frames it in its own way, and puts it in the same call.
    """

    __slots__ = (
        "_connection",
        "_full",
        "_last_put",
        "_loop",
        "_now",
        "_on_silence",
        "_silence_s",
        "_silence_timer",
        "_stream",
        "_transport",
        "bytes_out",
    )

    def __init__(self, connection: ClientSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._now = connection.now
        self._transport = connection.transport
        self._stream: Stream | None = None
        self._silence_s = 0.0
        self._on_silence: Callable[[], None] = _nothing
        self._last_put = self._now()
        self._silence_timer: asyncio.TimerHandle | None = None
        self.bytes_out = 0
        self._full = connection.writing_paused
        connection.tell_of_writing(self._change)

    def serve(self, stream: Stream | None) -> None:
        """Tell this stream (None: no more) when the reader has caught up."""
        self._stream = stream

    def break_silence(self, every_s: float | None, on_silence: Callable[[], None]) -> None:
        """From now on call `on_silence` after every `every_s` seconds without a byte (None: no more)."""
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
        if every_s is not None:
            self._silence_s = every_s
            self._on_silence = on_silence
            self._last_put = self._now()
            self._silence_timer = self._loop.call_later(every_s, self._check_silence)

    def put(self, data: bytes) -> bool:
        """Write at once. True when the reader is behind: put no more until the stream is told that it has drained."""
        transport, now = self._transport, self._now
        if transport is None or transport.is_closing():
            return False
        self._last_put = now()
        self.bytes_out += len(data)
        transport.write(data)
        return self._full

    def put_pieces(self, *pieces: bytes) -> bool:
        """Likewise, without a copy of large ones."""
        transport, now = self._transport, self._now
        if transport is None or transport.is_closing():
            return False
        self._last_put = now()
        self.bytes_out += sum(map(len, pieces))
        transport.writelines(pieces)
        return self._full

    def shut(self) -> None:
        """The last word has gone: nothing follows it."""
        self._transport = None

    def cut(self) -> None:
        """Close the connection once what was put is sent."""
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        """Leave the connection to others."""
        self._connection.tell_of_writing(None)
        if self._silence_timer is not None:
            self._silence_timer.cancel()

    def _change(self, paused: bool) -> None:
        self._full = paused
        if self._stream is not None and not paused:
            self._stream.drained()

    def _check_silence(self) -> None:
        due = self._last_put + self._silence_s
        if due <= self._now():
            if not self._full:
                self._on_silence()
            due = self._now() + self._silence_s
        self._silence_timer = self._loop.call_at(due, self._check_silence)


def _nothing() -> None:
    """Silence that nobody breaks."""
