"""A stream: one answer on its way. Its events are counted here, given to whoever listens, and ended exactly once.

Pure: events are pushed through in one call, with no task, future or copy. What happens upstream is the source's
business (an exchange), what a client sees is the listener's (an HTTP answer, a WebSocket session).
"""

from __future__ import annotations

from typing import Protocol

from proxy.errors import GatewayError, InternalError
from proxy.wire.sse import Event


class Source(Protocol):
    """Where a stream's events come from."""

    def pause(self) -> None:
        """Give no more events until `resume`."""

    def resume(self) -> None: ...

    def interrupt(self, error: GatewayError) -> None:
        """End the answer with `error`, wherever it is."""

    def close(self) -> None:
        """Stop for good: nobody wants the rest."""


class Listener(Protocol):
    """Who a stream's events go to."""

    def write(self, events: list[Event]) -> bool:
        """Take one batch, never empty. True: full, so send no more until the listener calls `Stream.drained`."""

    def end(self, error: GatewayError | None) -> None:
        """The answer is complete (None), or broke off: the one terminal error of this stream."""


class Stream:
    """One answer. `events` counts what was published, `error` is how it ended, if not well; `first_content_at` is the
    source's time (its clock's seconds) when the model first said something, `last_read_at` that of the upstream's last
    bytes, once it is over; `batches` is how many publishings the events came in, one for a read."""

    __slots__ = (
        "_full",
        "_listener",
        "_pending",
        "_source",
        "batches",
        "ended",
        "error",
        "events",
        "first_content_at",
        "last_read_at",
    )

    def __init__(self) -> None:
        self.events = 0
        self.ended = False
        self.error: GatewayError | None = None
        self.batches = 0
        self.first_content_at: float | None = None
        self.last_read_at: float | None = None
        self._source: Source | None = None
        self._listener: Listener | None = None
        self._pending: list[Event] = []
        self._full = False

    # ---- the source's side ----

    def flow_from(self, source: Source) -> None:
        """From now on `source` publishes this stream's events. Raises what it was interrupted with meanwhile."""
        if self.ended:
            raise self.error or InternalError("the stream has ended")
        self._source = source

    def publish(self, events: list[Event]) -> None:
        """Pass on events that came together, in order. Until somebody listens they are kept: two batches at the most,
        then the source pauses."""
        self.events += len(events)
        self.batches += 1
        if self._listener is None:
            if self._pending:
                self._hold()
            self._pending += events
        elif self._listener.write(events):
            self._hold()

    def end(self, error: GatewayError | None = None) -> None:
        """The one end. A second call changes nothing."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        self._source = None
        if self._listener is not None:
            self._listener.end(error)

    # ---- the listener's side ----

    def attach(self, listener: Listener) -> None:
        """Give everything so far to `listener`, then each batch as it comes. Once only."""
        assert self._listener is None
        self._listener = listener
        pending, self._pending = self._pending, []
        full = bool(pending) and listener.write(pending)
        if self._listener is None:
            return  # it had enough of the first batch
        if self.ended:
            listener.end(self.error)
        elif full:
            self._hold()
        else:
            self.drained()

    def drained(self) -> None:
        """The listener can take more."""
        if self._full:
            self._full = False
            if self._source is not None:
                self._source.resume()

    def interrupt(self, error: GatewayError) -> None:
        """End it here and now with `error`, on behalf of the gateway (a drain's deadline)."""
        if self._source is not None:
            self._source.interrupt(error)
        self.end(error)

    def cancel(self) -> None:
        """Nobody wants the rest: close the source. The listener hears nothing more."""
        self._listener = None
        source, self._source = self._source, None
        self.ended = True
        if source is not None:
            source.close()

    def _hold(self) -> None:
        if not self._full and self._source is not None:
            self._full = True
            self._source.pause()
