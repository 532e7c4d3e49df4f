"""One HTTP client that follows a kept stream: its events go out numbered, and what it cannot take yet waits there.

It follows a `NumberedStream` and is the source of a `Stream` of its own, which the client's response listens to.
"""

from __future__ import annotations

from typing import Final

from proxy.downstream.mux_channel import TakenOver
from proxy.errors import GatewayError, UpstreamTruncated
from proxy.streams.backlog import FRAME_COST_BYTES
from proxy.streams.numbered import NumberedStream
from proxy.streams.replayed import Replayed
from proxy.streams.stream import Stream
from proxy.wire.mux_frames import Ending
from proxy.wire.sse import Event

QUEUE_BYTES: Final = 256 * 1024
"""When so much waits for a client, the upstream is not read on."""
FETCH: Final = 32


class Following:
    """`stream` is what the client gets, to its end. Its duty to whoever holds it: `leave`, once."""

    def __init__(self, replayed: Replayed) -> None:
        self.stream = Stream()
        self.stream.flow_from(self)
        self._replayed = replayed
        self._numbered: NumberedStream | None = None
        self._full = False
        self._waiting_bytes = 0

    def follow(self, numbered: NumberedStream, after: int = 0) -> None:
        """From what comes behind number `after`. Raises what `NumberedStream.follow` does."""
        numbered.require(after)
        self._numbered = numbered
        numbered.follow(self, after)

    def leave(self) -> bool:
        """The client has its answer, or has gone. Whether nobody follows the stream now that it has."""
        numbered, self._numbered = self._numbered, None
        if numbered is not None:
            numbered.leave(self)
        return numbered is not None

    # ---- the numbered stream's side (its follower) ----

    def take(self, events: list[Event], first: int) -> int:
        if self._full:
            return 0
        self.stream.publish(self._replayed.events(events, first))
        return len(events)

    def await_turn(self, more_bytes: int) -> bool:
        self._waiting_bytes += more_bytes
        self._catch_up()
        return self._waiting_bytes >= QUEUE_BYTES

    def take_end(self, ending: Ending) -> bool:
        if self._full:
            return False
        assert self._numbered is not None
        self._end(self._replayed.last_words(ending, self._numbered.head))
        return True

    def give_way(self) -> None:
        self._numbered = None
        self._end(self._replayed.error(TakenOver("The stream goes on elsewhere: somebody follows it now.")))

    # ---- the client's stream's side (its source) ----

    def pause(self) -> None:
        self._full = True

    def resume(self) -> None:
        self._full = False
        self._catch_up()

    def interrupt(self, error: GatewayError) -> None:
        """Nobody does: the stream that is followed is interrupted."""

    def close(self) -> None:
        self._full = True

    # ---- within ----

    def _catch_up(self) -> None:
        """Give what waits, until the client is full again."""
        while not self._full and self._numbered is not None:
            numbered = self._numbered
            events = numbered.fetch(FETCH)
            if not events:
                break
            self._waiting_bytes -= sum(len(event.data) + FRAME_COST_BYTES for event in events)
            self.stream.publish(self._replayed.events(events, numbered.taken - len(events) + 1))
        if not self._full and self._numbered is not None:
            ending = self._numbered.fetch_end()
            if ending is not None:
                self._end(self._replayed.last_words(ending, self._numbered.head))
            else:
                self._numbered.drained()

    def _end(self, last_words: bytes | None) -> None:
        """The end of what this client gets; None: its body is cut."""
        if last_words:
            self.stream.publish([Event(last_words, last_words, last_words)])
        self.stream.end(UpstreamTruncated("the stream broke off") if last_words is None else None)
