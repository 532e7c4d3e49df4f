"""A stream by its numbers: each event gets one, and is kept until whoever follows has taken it, or for who comes back.

It listens to a `Stream` and is followed by a place in a session, or in an HTTP answer. While the follower keeps up,
events go through in the call they came with; what it leaves waits here, and is its to fetch. Numbers have no holes: an
event that could not stand in a frame gets none. How long a stream is kept, and for whom, is `store`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from proxy.errors import ClientError, GatewayError, InvalidRequest
from proxy.protocols.event_data import is_done
from proxy.streams.stream import Stream
from proxy.wire.json_object import object_payload, splices
from proxy.wire.mux_frames import Ending
from proxy.wire.sse import Event

FRAME_COST_BYTES: Final = 100
"""What a frame costs beyond its data: in memory while it waits, and on the wire around it."""


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


class Shelf(Protocol):
    """Room for what is kept of all streams."""

    def hold(self, more_bytes: int) -> bool:
        """So many more (or fewer) are kept. True: that is too much."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How much of a stream is kept for who comes back, besides what its follower has not taken yet."""

    frames: int
    bytes: int
    shelf: Shelf


class NumberedStream:
    """`head` is the last number so far, the end's included; `taken` the last that the follower has.

    `screen` says which events of a batch are for followers, under which names. `known`: the protocol has only JSON
    objects, so that anything else has no place in it, and `on_malformed` is told. `conclude` gives the end its words,
    called once, when the answer is over. `keeping` None: nothing is kept but what waits for the follower.
    """

    __slots__ = (
        "_conclude",
        "_data",
        "_follower",
        "_held_bytes",
        "_keeping",
        "_known",
        "_names",
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
        self._keeping = keeping
        self._conclude = conclude
        self._on_malformed = on_malformed
        self._stream: Stream | None = None
        self._follower: Follower | None = None
        self._data: deque[bytes] = deque()  # of the last events, and their names: nothing here for the collector
        self._names: deque[bytes] = deque()
        self._held_bytes = 0
        self.head = 0
        self.taken = 0
        self.ending: Ending | None = None

    @property
    def live(self) -> bool:
        return self.ending is None

    @property
    def oldest(self) -> int:
        """The first number that can be had: an event's, the end's, or the one that comes next."""
        return self._last_event - len(self._data) + 1

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
                events = self._readable(events)
                break
        count = len(events)
        if not count:
            return False
        self.head = head + count
        took = 0
        if follower is not None and self.taken == head:
            took = follower.take(events, head + 1)
            self.taken = head + took
        if took == count and self._keeping is None:
            return False  # by far the commonest
        self._store(events if self._keeping is not None else events[took:])
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
            waiting = islice(self._data, max(after + 1 - self.oldest, 0), None)
            follower.await_turn(sum(len(data) + FRAME_COST_BYTES for data in waiting))

    def fetch(self, most: int) -> list[Event]:
        """The next events that wait, at most so many: they are taken now. Empty when only the end waits, or nothing."""
        start = self.taken + 1 - self.oldest
        count = min(most, len(self._data) - start)
        if count <= 0:
            return []
        self.taken += count
        if self._keeping is None:
            return [self._drop_oldest() for _ in range(count)]
        data, names = islice(self._data, start, start + count), islice(self._names, start, start + count)
        events = [Event(each, each, each, name) for each, name in zip(data, names, strict=True)]
        self._make_room()
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
            self._make_room()
            self.drained()

    def forget_waiting(self) -> None:
        """What nobody has taken yet is dropped, where nothing is kept: numbers go on from what was taken."""
        if self._keeping is None and self.ending is None:
            self.head = self.taken
            self._data.clear()
            self._names.clear()
            self._held_bytes = 0

    def close(self) -> None:
        """It is no longer kept for who comes back. Who follows still gets the rest."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.shelf.hold(-self._held_bytes)
        while len(self._data) > self._still_wanted():
            self._drop_oldest()

    # ---- within ----

    def _readable(self, events: list[Event]) -> list[Event]:
        """The events that can stand in a frame, their data as it stands there. `[DONE]` is for those that read SSE."""
        readable = []
        for event in events:
            if is_done(event.data):
                continue
            data = object_payload(event.data, known=self._known)
            if data is None:
                self._on_malformed()
            else:
                readable.append(event if data is event.data else Event(data, data, data, event.type))
        return readable

    def _store(self, events: list[Event]) -> None:
        cost = 0
        for event in events:
            data = event.data
            self._data.append(data)
            self._names.append(event.type)
            cost += len(data) + FRAME_COST_BYTES
        self._held_bytes += cost
        keeping = self._keeping
        if keeping is not None:
            too_much = keeping.shelf.hold(cost)
            if too_much or self._held_bytes > keeping.bytes or len(self._data) > keeping.frames:
                self._make_room()

    def _make_room(self) -> None:
        """Let the oldest go, but not what the follower has yet to take: that is bounded by pausing."""
        keeping = self._keeping
        if keeping is None:
            return
        still_wanted = self._still_wanted()
        while len(self._data) > still_wanted and (
            len(self._data) > keeping.frames or self._held_bytes > keeping.bytes or keeping.shelf.hold(0)
        ):
            self._drop_oldest()

    def _still_wanted(self) -> int:
        return self._last_event - min(self.taken, self._last_event) if self._follower is not None else 0

    def _drop_oldest(self) -> Event:
        data = self._data.popleft()
        self._count(-len(data) - FRAME_COST_BYTES)
        return Event(data, data, data, self._names.popleft())

    def _count(self, more_bytes: int) -> None:
        self._held_bytes += more_bytes
        if self._keeping is not None:
            self._keeping.shelf.hold(more_bytes)


def _cost(event: Event) -> int:
    return len(event.data) + FRAME_COST_BYTES


def _nothing(events: list[Event]) -> list[Event]:
    """Nothing comes after the end."""
    return []


def _unheard(error: GatewayError | None) -> Ending:
    raise AssertionError("a stream ends once")
