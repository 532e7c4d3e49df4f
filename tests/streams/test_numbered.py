"""A stream by its numbers, followed by one who keeps up, one who does not, and one who comes back."""

from __future__ import annotations

import gc
import json
import re
import weakref

import pytest

from proxy.errors import GatewayError, InvalidRequest, UpstreamTruncated
from proxy.streams.backlog import FRAME_COST_BYTES, Keeping
from proxy.streams.numbered import NumberedStream, ReplayGap
from proxy.streams.stream import Stream
from proxy.wire.mux_frames import Ending
from proxy.wire.sse import Event

DONE = Ending.done({"output_tokens": 3})


def event(text: str, name: bytes = b"") -> Event:
    data = json.dumps({"t": text}).encode()
    return Event(data, b"data: " + data + b"\n\n", data, name)


def text_of(each: Event) -> str:
    return re.sub(rb'\{"t": "(.*)"\}', rb"\1", each.data).decode()


class Shelf:
    def __init__(self, room_bytes: int = 10**9) -> None:
        self.held_bytes = 0
        self._room_bytes = room_bytes

    def hold(self, more_bytes: int) -> bool:
        self.held_bytes += more_bytes
        return self.held_bytes > self._room_bytes


class Source:
    """Where the events come from; `paused` is what it was told."""

    def __init__(self) -> None:
        self.paused = False
        self.closed = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def interrupt(self, error: GatewayError) -> None:
        raise AssertionError(error)

    def close(self) -> None:
        self.closed = True


class Follows:
    """A follower that takes `room` events a time (None: all), and writes down what it hears: `1:a 2:b end`."""

    def __init__(
        self, numbered: NumberedStream, room: int | None = None, after: int = 0, *, full: bool = False
    ) -> None:
        self.numbered = numbered
        self.room = room
        self.full = full
        self.heard: list[str] = []
        self.waiting_bytes = 0
        self.gave_way = False
        numbered.follow(self, after)

    def take(self, events: list[Event], first: int) -> int:
        took = events if self.room is None else events[: self.room]
        self._hear(took, first)
        return len(took)

    def await_turn(self, more_bytes: int) -> bool:
        self.waiting_bytes += more_bytes
        return self.full

    def take_end(self, ending: Ending) -> bool:
        if self.room == 0:
            return False
        self.heard.append("end")
        return True

    def give_way(self) -> None:
        self.gave_way = True

    def fetch(self, most: int = 100) -> str:
        """Fetch, and what that gave."""
        before = len(self.heard)
        first = self.numbered.taken + 1
        self._hear(self.numbered.fetch(most), first)
        if self.numbered.fetch_end() is not None:
            self.heard.append("end")
        return " ".join(self.heard[before:])

    @property
    def all(self) -> str:
        return " ".join(self.heard)

    def _hear(self, events: list[Event], first: int) -> None:
        self.heard += [f"{first + at}:{text_of(each)}" for at, each in enumerate(events)]


class Malformed:
    def __init__(self) -> None:
        self.count = 0

    def count_one(self) -> None:
        self.count += 1


class World:
    """A stream, its source, and its numbers."""

    def __init__(
        self, *, frames: int | None = None, bytes: int = 10**9, room_bytes: int = 10**9, known: bool = True
    ) -> None:
        self.source = Source()
        self.stream = Stream()
        self.stream.flow_from(self.source)
        self.malformed = Malformed()
        self.shelf = Shelf(room_bytes)
        self.concluded: list[GatewayError | None] = []
        self.numbered = NumberedStream(
            screen=lambda events: events,
            known=known,
            keeping=None if frames is None else Keeping(frames, bytes, self.shelf),
            conclude=self._conclude,
            on_malformed=self.malformed.count_one,
        )

    def listen(self) -> World:
        self.numbered.listen(self.stream)
        return self

    def publish(self, texts: str) -> None:
        """One batch: `a b c`."""
        self.stream.publish([event(text) for text in texts.split()])

    def _conclude(self, error: GatewayError | None) -> Ending:
        self.concluded.append(error)
        return DONE if error is None else Ending.failed(error)


@pytest.mark.parametrize("frames", [None, 100], ids=["not kept", "kept"])
def test_events_go_through_to_one_who_keeps_up(frames: int | None) -> None:
    world = World(frames=frames).listen()
    follower = Follows(world.numbered)
    world.publish("a")
    world.publish("b c")
    world.stream.end()
    assert follower.all == "1:a 2:b 3:c end"
    assert follower.waiting_bytes == 0
    assert (world.numbered.head, world.numbered.ending) == (4, DONE)


def test_events_from_before_go_through_too() -> None:
    world = World()
    follower = Follows(world.numbered)
    world.publish("a b")
    world.stream.end()
    world.listen()
    assert follower.all == "1:a 2:b end"


@pytest.mark.parametrize("frames", [None, 100], ids=["not kept", "kept"])
def test_what_is_left_waits_and_is_fetched_in_order(frames: int | None) -> None:
    world = World(frames=frames).listen()
    follower = Follows(world.numbered, room=1)
    world.publish("a b c")
    world.publish("d")
    assert follower.all == "1:a"
    assert follower.waiting_bytes == 3 * (len(event("x").data) + FRAME_COST_BYTES)
    world.stream.end()
    assert follower.fetch(2) == "2:b 3:c"
    assert follower.fetch(2) == "4:d end"
    assert follower.fetch() == ""


def test_one_who_caught_up_is_pushed_to_again() -> None:
    world = World().listen()
    follower = Follows(world.numbered, room=0)
    world.publish("a")
    follower.fetch()
    follower.room = None
    world.publish("b")
    world.stream.end()
    assert follower.all == "1:a 2:b end"


def test_one_who_has_enough_waiting_pauses_the_source_until_drained() -> None:
    world = World().listen()
    follower = Follows(world.numbered, room=0, full=True)
    world.publish("a")
    assert world.source.paused
    follower.fetch()
    world.numbered.drained()
    assert not world.source.paused


@pytest.mark.parametrize("frames", [None, 100], ids=["not kept", "kept"])
def test_an_end_that_came_while_events_wait_comes_after_them(frames: int | None) -> None:
    world = World(frames=frames).listen()
    follower = Follows(world.numbered, room=0)
    world.publish("a")
    world.stream.end(UpstreamTruncated("cut"))
    assert follower.all == ""
    assert follower.fetch() == "1:a end"
    assert world.numbered.ending is not None
    assert world.numbered.ending.status == 502


def test_an_end_that_is_not_taken_waits_too() -> None:
    world = World().listen()
    follower = Follows(world.numbered, room=0)
    world.stream.end()
    assert follower.all == ""
    assert follower.fetch() == "end"
    assert follower.fetch() == ""


def test_there_is_one_end() -> None:
    world = World().listen()
    follower = Follows(world.numbered)
    world.publish("a")
    world.numbered.finish(Ending.cancelled("client"))
    world.stream.end()
    world.numbered.finish(DONE)
    assert follower.all == "1:a end"
    assert world.numbered.ending == Ending.cancelled("client")
    assert world.concluded == []


def test_what_ended_and_is_kept_holds_nothing_of_its_request() -> None:
    world = World(frames=10).listen()
    world.publish("a")
    world.stream.end()
    numbered, gone = world.numbered, weakref.ref(world)
    del world
    gc.collect()
    assert gone() is None
    assert Follows(numbered).fetch() == "1:a end"


# ---- what has no place in a frame ----


def raw(data: bytes, name: bytes = b"") -> Event:
    return Event(data, data, data, name)


def test_what_is_no_object_gets_no_number() -> None:
    world = World().listen()
    follower = Follows(world.numbered)
    world.stream.publish([event("a"), raw(b'{"a":NaN}'), raw(b'{"a":1},"type":"done"'), event("b")])
    world.stream.publish([raw(b"[DONE]")])
    world.stream.publish([raw(b" [DONE] "), event("c")])
    assert follower.all == "1:a 2:b 3:c"
    assert world.malformed.count == 2


def test_a_protocol_nobody_knows_may_say_anything() -> None:
    world = World(known=False).listen()
    follower = Follows(world.numbered)
    world.stream.publish([raw(b"hello"), raw(b"[DONE]"), event("c")])
    assert follower.all == '1:{"raw":"hello"} 2:c'
    assert world.malformed.count == 0


def test_bytes_that_are_no_utf8_are_written_out() -> None:
    world = World().listen()
    follower = Follows(world.numbered)
    world.stream.publish([raw(b'{"a":"\xff"}')])
    assert follower.all == '1:{"raw":"{\\"a\\":\\"\\\\xff\\"}"}'


def test_a_batch_with_nothing_in_it_changes_nothing() -> None:
    world = World(frames=10).listen()
    follower = Follows(world.numbered, full=True)
    world.stream.publish([raw(b"[DONE]")])
    assert (world.numbered.head, follower.all, world.source.paused) == (0, "", False)


# ---- who comes back ----


def test_one_who_comes_back_gets_what_came_meanwhile_and_then_the_live_ones() -> None:
    world = World(frames=100).listen()
    first = Follows(world.numbered)
    world.publish("a b")
    world.numbered.leave(first)
    world.publish("c d")
    again = Follows(world.numbered, after=2)
    assert again.waiting_bytes > 0
    assert again.fetch() == "3:c 4:d"
    world.publish("e")
    world.stream.end()
    assert again.all == "3:c 4:d 5:e end"
    assert first.all == "1:a 2:b"


@pytest.mark.parametrize("after", range(5))
def test_one_who_comes_back_after_the_end_gets_the_rest(after: int) -> None:
    world = World(frames=100).listen()
    world.publish("a b c")
    world.stream.end()
    again = Follows(world.numbered, after=after)
    assert again.fetch() == " ".join(["1:a", "2:b", "3:c", "end"][after:])


def test_names_are_kept() -> None:
    world = World(frames=100).listen()
    world.stream.publish([event("a", b"message_start"), event("b")])
    Follows(world.numbered)
    assert [each.type for each in world.numbered.fetch(2)] == [b"message_start", b""]


def test_one_who_knows_more_than_there_is_is_refused() -> None:
    world = World(frames=100).listen()
    world.publish("a")
    with pytest.raises(InvalidRequest):
        Follows(world.numbered, after=2)


def test_a_second_one_takes_over_and_the_first_hears_nothing_more() -> None:
    world = World(frames=100).listen()
    first = Follows(world.numbered)
    world.publish("a")
    second = Follows(world.numbered, after=0)
    assert (first.gave_way, second.gave_way) == (True, False)
    world.publish("b")
    world.numbered.leave(first)
    second.fetch()
    world.publish("c")
    assert first.all == "1:a"
    assert second.all == "1:a 2:b 3:c"


def test_a_refused_one_does_not_take_over() -> None:
    world = World(frames=100).listen()
    first = Follows(world.numbered)
    with pytest.raises(InvalidRequest):
        Follows(world.numbered, after=5)
    world.publish("a")
    assert (first.all, first.gave_way) == ("1:a", False)


@pytest.mark.parametrize("way", ["leave", "take over"])
def test_a_source_that_was_paused_for_one_who_left_goes_on(way: str) -> None:
    world = World(frames=100).listen()
    first = Follows(world.numbered, room=0, full=True)
    world.publish("a")
    assert world.source.paused
    if way == "leave":
        world.numbered.leave(first)
    else:
        Follows(world.numbered, after=1)
    assert not world.source.paused


def test_nobody_there_pauses_nothing() -> None:
    world = World(frames=2).listen()
    for _ in range(100):
        world.publish("a b c")
    assert not world.source.paused
    assert world.numbered.head == 300


# ---- how much is kept ----


def test_the_oldest_fall_out_by_number() -> None:
    world = World(frames=3).listen()
    world.publish("a b c d e")
    assert world.numbered.oldest == 3
    for after in (0, 1):
        with pytest.raises(ReplayGap) as gap:
            Follows(world.numbered, after=after)
        assert (gap.value.oldest, gap.value.status, gap.value.code) == (3, 410, "replay_gap")
    assert Follows(world.numbered, after=2).fetch() == "3:c 4:d 5:e"


def test_the_oldest_fall_out_by_size() -> None:
    one = len(event("a").data) + FRAME_COST_BYTES
    world = World(frames=1000, bytes=2 * one).listen()
    world.publish("a b c")
    assert world.numbered.oldest == 2
    assert world.shelf.held_bytes == 2 * one


def test_one_event_larger_than_all_that_is_kept_is_not() -> None:
    world = World(frames=10, bytes=1000).listen()
    follower = Follows(world.numbered)
    world.publish("x" * 2000)
    assert len(follower.heard) == 1
    assert world.numbered.oldest == 2
    world.stream.end()
    assert Follows(world.numbered, after=1).fetch() == "end"


def test_a_full_shelf_ends_keeping_and_not_the_stream() -> None:
    world = World(frames=10, room_bytes=0).listen()
    follower = Follows(world.numbered)
    world.publish("a b")
    assert follower.all == "1:a 2:b"
    with pytest.raises(ReplayGap):
        Follows(world.numbered, after=0)
    assert world.shelf.held_bytes == 0


def test_what_a_slow_follower_has_not_taken_never_falls_out() -> None:
    world = World(frames=2, bytes=1, room_bytes=0).listen()
    follower = Follows(world.numbered, room=0)
    world.publish("a b c d e f")
    world.stream.end()
    assert follower.fetch(4) == "1:a 2:b 3:c 4:d"
    assert follower.fetch(4) == "5:e 6:f end"
    assert world.shelf.held_bytes == 0


def test_closing_gives_the_room_back_but_not_what_somebody_still_reads() -> None:
    world = World(frames=100).listen()
    world.publish("a b c d")
    world.stream.end()
    follower = Follows(world.numbered)
    assert follower.fetch(1) == "1:a"
    world.numbered.close()
    assert world.shelf.held_bytes == 0
    assert follower.fetch(1) == "2:b"
    assert follower.fetch() == "3:c 4:d end"
    assert world.shelf.held_bytes == 0


def test_what_waits_is_dropped_where_nothing_is_kept_and_numbers_have_no_hole() -> None:
    world = World().listen()
    follower = Follows(world.numbered, room=1)
    world.publish("a b c")
    world.numbered.forget_waiting()
    world.numbered.finish(Ending.cancelled("client"))
    assert follower.all == "1:a end"
    assert world.numbered.head == 2


def test_what_is_kept_is_not_dropped() -> None:
    world = World(frames=10).listen()
    follower = Follows(world.numbered, room=1)
    world.publish("a b c")
    world.numbered.forget_waiting()
    world.numbered.finish(Ending.cancelled("client"))
    assert follower.fetch() == "2:b 3:c end"
