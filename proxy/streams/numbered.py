"""A stream by its numbers: each event gets one, and is kept until whoever follows has taken it, or for who comes back.

It listens to a `Stream` and is followed by a place in a session, or in an HTTP answer. While the follower keeps up,
events go through in the call they came with; what it leaves waits in the `backlog`, and is its to fetch. Numbers have
no holes: an event that could not stand in a frame gets none. How long a stream is kept, and for whom, is `store`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.errors import ClientError, GatewayError, InvalidRequest
from proxy.streams.backlog import FRAME_COST_BYTES, Backlog, Keeping
from proxy.streams.readable import readable
from proxy.streams.stream import Stream
from proxy.wire.json_object import splices
from proxy.wire.mux_frames import Ending
from proxy.wire.sse import Event

Screen = Callable[[list[Event]], list[Event]]


class ReplayGap(ClientError):
    """What was asked for has fallen out of the buffer; `oldest` is the first number that can still be had."""

    status = 410
    default_code = "replay_gap"

    def __init__(self, oldest: int) -> None:
        super().__init__(f"The stream is kept from number {oldest} on: what came before it is gone.")
        self.oldest = oldest


class Follower(Protocol):
    """Who takes a stream's events."""

    def take(self, events: list[Event], first: int) -> int:
        """Events that just came, numbered from `first`, to one who has all before them. How many of them it took."""

    def await_turn(self, more_bytes: int) -> bool:
        """So many more bytes wait to be fetched (0: an end does). True: that is enough, so nothing more should come."""

    def take_end(self, ending: Ending) -> bool:
        """The stream has ended, and everything before its end is taken. Whether the end was."""

    def give_way(self) -> None:
        """Somebody else follows now. Nothing more comes."""


class NumberedStream:
    """`head` is the last number so far, the end's included; `taken` the last that the follower has.

    `screen` says which events of a batch are for followers, under which names. `known`: the protocol has only JSON
    objects, so that anything else has no place in it, and `on_malformed` is told. `conclude` gives the end its words,
    called once, when the answer is over. `keeping` None: nothing is kept but what waits for the follower.
    """

    __slots__ = (
        "_backlog",
        "_conclude",
        "_follower",
        "_known",
        "_on_malformed",
        "_screen",
        "_stream",
        "ending",
        "head",
        "taken",
    )

    def __init__(
        self,
        *,
        screen: Screen,
        known: bool,
        keeping: Keeping | None,
        conclude: Callable[[GatewayError | None], Ending],
        on_malformed: Callable[[], None],
    ) -> None:
        self._screen = screen
        self._known = known
        self._backlog = Backlog(keeping)
        self._conclude = conclude
        self._on_malformed = on_malformed
        self._stream: Stream | None = None
        self._follower: Follower | None = None
        self.head = 0
        self.taken = 0
        self.ending: Ending | None = None

    @property
    def live(self) -> bool:
        return self.ending is None

    @property
    def oldest(self) -> int:
        """The first number that can be had: an event's, the end's, or the one that comes next."""
        return self._last_event - len(self._backlog) + 1

    @property
    def _last_event(self) -> int:
        return self.head if self.ending is None else self.head - 1

    # ---- the stream's side (its listener) ----

    def listen(self, stream: Stream) -> None:
        """Number what `stream` has and gets. Once only."""
        self._stream = stream
        stream.attach(self)

    def write(self, events: list[Event]) -> bool:
        screen, follower, head = self._screen, self._follower, self.head
        events = screen(events)
        for event in events:
            if not splices(event.data):
                events = readable(events, known=self._known, on_malformed=self._on_malformed)
                break
        count = len(events)
        if not count:
            return False
        self.head = head + count
        took = 0
        if follower is not None and self.taken == head:
            took = follower.take(events, head + 1)
            self.taken = head + took
        backlog = self._backlog
        if backlog.keeping is not None:
            if backlog.add(events):
                backlog.make_room(self._wanted())
        elif took == count:
            return False  # by far the commonest
        else:
            backlog.add(events[took:])
        return follower is not None and took < count and follower.await_turn(sum(map(_cost, events[took:])))

    def end(self, error: GatewayError | None) -> None:
        if self.ending is None:
            self.finish(self._conclude(error))

    def finish(self, ending: Ending) -> None:
        """The one end, whoever says it. A second changes nothing."""
        if self.ending is not None:
            return
        self.ending = ending
        self.head += 1
        self._stream, self._screen, self._conclude = None, _nothing, _unheard  # which hold the request and its body
        follower = self._follower
        if follower is None:
            return
        if self.taken == self.head - 1 and follower.take_end(ending):
            self.taken = self.head
        else:
            follower.await_turn(0)

    # ---- the follower's side ----

    def require(self, after: int) -> None:
        """Raise ReplayGap or InvalidRequest where nobody can go on behind number `after`."""
        if after > self.head:
            raise InvalidRequest(f"The stream has come to number {self.head}: give `after` one that is there.")
        if after + 1 < self.oldest:
            raise ReplayGap(self.oldest)

    def follow(self, follower: Follower, after: int = 0) -> None:
        """From now on `follower` gets what comes behind number `after`; who followed before gives way.

        What is there already it is told to await its turn for. Raises ReplayGap or InvalidRequest.
        """
        self.require(after)
        previous, self._follower = self._follower, follower
        if previous is not None:
            previous.give_way()
        self.taken = after
        if after == self.head:
            self.drained()
        else:
            follower.await_turn(self._backlog.cost_from(max(after + 1 - self.oldest, 0)))

    def fetch(self, most: int) -> list[Event]:
        """The next events that wait, at most so many: they are taken now. Empty when only the end waits, or nothing."""
        start = self.taken + 1 - self.oldest
        count = min(most, len(self._backlog) - start)
        if count <= 0:
            return []
        self.taken += count
        events = self._backlog.fetch(start, count)
        self._backlog.make_room(self._wanted())
        return events

    def fetch_end(self) -> Ending | None:
        """The end, if it is next: it is taken now."""
        if self.ending is None or self.taken != self.head - 1:
            return None
        self.taken = self.head
        return self.ending

    def drained(self) -> None:
        """The follower can take more."""
        if self._stream is not None:
            self._stream.drained()

    def leave(self, follower: Follower) -> None:
        """`follower` has gone: a stream that is kept goes on alone. Nothing, where somebody else follows by now."""
        if self._follower is follower:
            self._follower = None
            self._backlog.make_room(self._wanted())
            self.drained()

    def forget_waiting(self) -> None:
        """What nobody has taken yet is dropped, where nothing is kept: numbers go on from what was taken."""
        if self._backlog.keeping is None and self.ending is None:
            self.head = self.taken
            self._backlog.clear()

    def close(self) -> None:
        """It is no longer kept for who comes back. Who follows still gets the rest."""
        self._backlog.stop_keeping(self._wanted())

    # ---- within ----

    def _wanted(self) -> int:
        """How many of the last events the follower has yet to take: what bounds those is that it pauses the source."""
        return self._last_event - min(self.taken, self._last_event) if self._follower is not None else 0


def _cost(event: Event) -> int:
    return len(event.data) + FRAME_COST_BYTES


def _nothing(events: list[Event]) -> list[Event]:
    """Nothing comes after the end."""
    return []


def _unheard(error: GatewayError | None) -> Ending:
    raise AssertionError("a stream ends once")
