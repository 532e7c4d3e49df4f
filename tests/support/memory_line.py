"""A connection without a socket and a clock that only moves when told: for tests of what comes when, cut anywhere."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    import pytest

    from proxy.errors import GatewayError, UpstreamError
    from proxy.streams.stream import Stream
    from proxy.wire.sse import Event


class MemoryTransport(asyncio.Transport):
    """What a protocol does to its transport, kept to be looked at; what arrives is the test's to say.

    `unsent_bytes` is what a slow server has not read yet.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.sent = b""
        self.unsent_bytes = 0
        self.closed = False
        self.reading = True
        self._protocol = protocol
        self._waiting: list[bytes] = []
        protocol.connection_made(self)

    # ---- the test's side: the server ----

    def arrive(self, *reads: bytes) -> None:
        """Each of these comes in a read of its own, once reading is not paused; after the close nothing comes."""
        self._waiting += reads
        self._deliver()

    def half_close(self) -> None:
        """The server has said all; what it has not read stays unread."""
        if not self.closed and not self._protocol.eof_received() and not self.unsent_bytes:
            self.close()

    def reset(self) -> None:
        self._lose(ConnectionResetError())

    # ---- the protocol's side ----

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "a request on a closed connection"
        self.sent += data

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closed
        self.reading = True
        asyncio.get_running_loop().call_soon(self._deliver)

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def _deliver(self) -> None:
        while self._waiting and self.reading and not self.closed:
            self._protocol.data_received(self._waiting.pop(0))

    def _lose(self, exc: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, exc)


class Line:
    """A connection over a `transport` in memory; `idle` and `lost` count what it told its pool."""

    def __init__(self) -> None:
        self.idle = 0
        self.lost = 0
        self.connection = UpstreamConnection(self._on_idle, self._on_lost)
        self.transport = MemoryTransport(self.connection)

    def _on_idle(self, connection: UpstreamConnection) -> None:
        self.idle += 1

    def _on_lost(self, connection: UpstreamConnection) -> None:
        self.lost += 1


class Answered:
    """A connection's receiver that keeps what it is given; `ends` has one entry a call that ends the answer, and `over`
    is set by it."""

    def __init__(self) -> None:
        self.head: AnswerHead | None = None
        self.body = b""
        self.ends: list[UpstreamError | None] = []
        self.over = asyncio.Event()

    def head_received(self, head: AnswerHead) -> None:
        assert self.head is None
        assert not self.ends
        self.head = head

    def body_received(self, data: bytes) -> None:
        assert self.head is not None
        assert data
        assert not self.ends
        self.body += data

    def answer_ended(self) -> None:
        self.ends.append(None)
        self.over.set()

    def answer_broken(self, error: UpstreamError) -> None:
        self.ends.append(error)
        self.over.set()


class Heard:
    """A stream's listener that keeps what it hears. While `full`, it says so after every batch."""

    def __init__(self, stream: Stream | None = None, *, full: bool = False) -> None:
        self.batches: list[list[Event]] = []
        self.ends: list[GatewayError | None] = []
        self.full = full
        self.over = asyncio.Event()
        if stream is not None:
            stream.attach(self)

    @property
    def wire(self) -> bytes:
        return b"".join(event.wire for batch in self.batches for event in batch)

    def write(self, events: list[Event]) -> bool:
        assert events
        assert not self.ends
        self.batches.append(list(events))
        return self.full

    def end(self, error: GatewayError | None) -> None:
        self.ends.append(error)
        self.over.set()


class Clock:
    """The running loop's time, standing still but for `advance`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = asyncio.get_running_loop().time()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self._now)

    async def advance(self, seconds: float) -> None:
        """Let the time pass, and do what has become due."""
        self._now += seconds
        await turns()


async def turns(count: int = 4) -> None:
    """Let the loop do what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def cuts(data: bytes) -> list[tuple[bytes, ...]]:
    """The data whole, in two pieces cut at every byte, and byte by byte."""
    two = [(data[:at], data[at:]) for at in range(1, len(data))]
    return [(data,), *two, tuple(data[at : at + 1] for at in range(len(data)))]
