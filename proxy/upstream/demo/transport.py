"""A transport with no socket: at its far end sits the built-in model, answering at a readable pace.

What the model says is decided in `model`, its HTTP in `server`; here is only time. A protocol
connected to this cannot tell it from a connection to a model server."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from proxy.upstream.demo.answer import Stamp
from proxy.upstream.demo.server import Malformed, Request, RequestReader, answered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.upstream.demo.answer import Timed
    from proxy.upstream.demo.settings import DemoSettings

READ_BYTES = 64 * 1024
"""About the most that one `data_received` brings, as a socket's buffer would limit it."""

TIMER_SLACK_S = 0.001
"""uvloop's timers have whole milliseconds: what is due within one counts as due."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What is needed of an event loop."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...
    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...


P = TypeVar("P", bound=asyncio.Protocol)


def connect(
    protocol_factory: Callable[[], P],
    settings: DemoSettings,
    *,
    loop: Loop | None = None,
    wall_clock: Callable[[], float] = time.time,
    nonce: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> tuple[DemoTransport, P]:
    """Connect a protocol to a model of its own; returns after `connection_made`, as `create_connection` would.

    `loop` is the running one unless given; `nonce` gives 32 hex digits for an answer's ids, `wall_clock` its date."""
    protocol = protocol_factory()
    transport = DemoTransport(
        protocol, settings, loop or asyncio.get_running_loop(), lambda: Stamp(nonce(), int(wall_clock()))
    )
    protocol.connection_made(transport)
    return transport, protocol


class DemoTransport(asyncio.Transport):
    """Writes are requests; answers arrive through `data_received`, one after another, never inside a `write`.

    Pieces are due at absolute times, so that the pace does not drift; what became due while the loop was late, or
    reading was paused, arrives together."""

    def __init__(
        self, protocol: asyncio.Protocol, settings: DemoSettings, loop: Loop, stamp: Callable[[], Stamp]
    ) -> None:
        super().__init__()
        self._protocol = protocol
        self._settings = settings
        self._loop = loop
        self._stamp = stamp
        self._reader = RequestReader()
        self._waiting: deque[Request | Malformed] = deque()
        self._answer: Iterator[Timed] | None = None
        self._last = False
        self._ended = False
        self._piece = b""
        self._due = 0.0
        self._timer: Timer | None = None
        self._paused = False
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take request bytes, cut anywhere; after `close` they go nowhere."""
        if self._closing or self._ended:
            return
        self._waiting.extend(self._reader.feed(data))
        self._next_answer()

    def _next_answer(self) -> None:
        """Start on the next request that waits, unless an answer is on its way."""
        if self._answer is None and self._waiting and not self._last:
            request = self._waiting.popleft()
            self._last = not request.keep_alive
            self._answer = answered(request, self._settings, self._stamp())
            self._due = self._loop.time()
            self._advance()
            self._schedule()

    def _advance(self) -> None:
        """Have the answer's next piece made, and know when it is due; at its end, have none."""
        delay_s, self._piece = next(self._answer, (0.0, b"")) if self._answer else (0.0, b"")
        self._due += delay_s
        if not self._piece:
            self._answer = None

    def _schedule(self) -> None:
        """Set the timer for the next piece, or for the end after the last one."""
        something_comes = self._answer is not None or (self._last and not self._ended)
        if something_comes and self._timer is None and self.is_reading():
            self._timer = self._loop.call_at(self._due, self._deliver)

    def _deliver(self) -> None:
        """Hand over all that is due, as one read of a socket would find it, and wait for the next."""
        self._timer = None
        due = self._taken(self._loop.time() + TIMER_SLACK_S)
        if due:
            self._hand_over(due)
        elif self._answer is None and self._last:
            self._end()
        self._next_answer()
        self._schedule()

    def _taken(self, until: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while self._answer is not None and self._due <= until and size < READ_BYTES:
            pieces.append(self._piece)
            size += len(self._piece)
            self._advance()
        return b"".join(pieces)

    def _hand_over(self, data: bytes) -> None:
        """A protocol that raises loses its connection, and the loop hears of it."""
        try:
            self._protocol.data_received(data)
        except Exception as exc:
            self._lose(exc)
            raise

    def _end(self) -> None:
        """The model closes its side after an answer that was to be the last."""
        self._ended = True
        if not self._protocol.eof_received():
            self.close()

    def close(self) -> None:
        """Stop answering; `connection_lost(None)` follows in the loop's next turn."""
        self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def _lose(self, exc: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self._answer = None
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.call_soon(self._protocol.connection_lost, exc)

    def pause_reading(self) -> None:
        """Nothing arrives until `resume_reading`; the model is not told, its pieces fall due meanwhile."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume_reading(self) -> None:
        self._paused = False
        self._schedule()

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is no socket, no peer and no TLS: always the default."""
        return default

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError("the demo transport needs an asyncio.Protocol")
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """Always 0: a write is read at once, and `pause_writing` never called."""
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing to limit."""

    def can_write_eof(self) -> bool:
        return False
