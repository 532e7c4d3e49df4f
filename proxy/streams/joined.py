"""One stream made of several that come one after the other: a listener of each in its turn, and the source of its own.

What of their events goes on, and in which words it ends, differs: it becomes a stage (`stages`), or the tool loop's
chat completion (`toolchain.chat_sink`). What is asked next, and when it is over, the owner says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from proxy.errors import GatewayError
from proxy.streams.stream import Stream
from proxy.wire.sse import Event

Ended = Callable[[GatewayError | None], None]
See = Callable[[Event], None]


class JoinedStream(ABC):
    """`stream` is what the client's side attaches to.

    `on_cancelled` is called when that side has gone, so that the owner stops what it does; nothing is published then.
    `over`: the end went out, or nobody listens any more. `error` is what it ended with, if not well. A subclass's duty:
    what `write` publishes of the followed stream, until it is `over`, and how it ends.
    """

    __slots__ = ("_ended", "_inner", "_on_cancelled", "_paused", "_see", "error", "over", "stream")

    def __init__(self, on_cancelled: Callable[[], None] | None) -> None:
        self._on_cancelled = on_cancelled
        self._inner: Stream | None = None
        self._ended: Ended = _nobody
        self._see: See | None = None
        self._paused = False
        self.over = False
        self.error: GatewayError | None = None
        self.stream = Stream()
        self.stream.flow_from(self)

    # ---- the owner's side ----

    def follow(self, inner: Stream, kind: str, ended: Ended, see: See | None = None) -> None:
        """Pass on what `inner` says, as events of this kind; `see` gets each of its events first.

        `ended` is called once, when `inner` has ended (perhaps within this call): with the error that broke it off. An
        error event of the upstream's is one: it ends this stream, and `ended` is told. Once this stream is over,
        `inner` is only cancelled. One at a time.
        """
        assert self._inner is None
        if self.over:
            inner.cancel()
            return
        self._begin(kind)
        self._ended, self._see = ended, see
        self._inner = inner
        inner.attach(self)

    @abstractmethod
    def stop_for(self, error: GatewayError | None) -> None:
        """The end that a completion's own end asks for, where nothing comes after it."""

    # ---- the followed stream's side (its listener) ----

    @abstractmethod
    def write(self, events: list[Event]) -> bool:
        """Whether it is `_paused`."""

    def end(self, error: GatewayError | None) -> None:
        self._inner = None
        ended, self._ended = self._ended, _nobody
        ended(error)

    # ---- its own stream's side (its source) ----

    def pause(self) -> None:
        """The followed stream hears of it as the answer to its next batch."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._inner is not None:
            self._inner.drained()

    def interrupt(self, error: GatewayError) -> None:
        if self._inner is not None:
            self._inner.interrupt(error)
        self.stop_for(error)

    def close(self) -> None:
        self.over = True
        self._let_go()
        if self._on_cancelled is not None:
            self._on_cancelled()

    # ---- within ----

    @abstractmethod
    def _begin(self, kind: str) -> None:
        """Another stream is about to be followed."""

    def _fail_within(self, failure: GatewayError) -> None:
        """The followed stream told of its failure in an event."""
        ended, self._ended = self._ended, _nobody
        self.stop_for(failure)
        ended(failure)

    def _let_go(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.cancel()


def _nobody(error: GatewayError | None) -> None:
    """Nobody waits for it."""
