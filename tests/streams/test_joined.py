"""One stream made of several: who hears of what, who is paused or stopped by whom, whatever becomes of the events."""

from __future__ import annotations

from proxy.errors import GatewayError, Unavailable, UpstreamError, UpstreamTruncated
from proxy.streams.joined import JoinedStream
from proxy.streams.stream import Stream
from proxy.wire.sse import Event

TRUNCATED = UpstreamTruncated("gone")
DRAINING = Unavailable("going", code="draining")


def events(text: str) -> list[Event]:
    return [Event(letter, letter, letter) for letter in (each.encode() for each in text)]


class Letters(JoinedStream):
    """Passes on letters; one of them fails."""

    def __init__(self, world: World) -> None:
        super().__init__(world.leave)
        self.kinds: list[str] = []

    def stop_for(self, error: GatewayError | None) -> None:
        if not self.over:
            self.over = True
            self.error = error
            self.stream.end(error)
            self._let_go()

    def write(self, events: list[Event]) -> bool:
        for event in events:
            if self._see is not None:
                self._see(event)
            if event.data == b"!":
                self._fail_within(UpstreamError("it failed"))
                break
            self.stream.publish([event])
        return self._paused

    def _begin(self, kind: str) -> None:
        self.kinds.append(kind)


class Upstream:
    """A stream to follow and its source, which writes down what it is told."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.stream.flow_from(self)
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def interrupt(self, error: GatewayError) -> None:
        self.told.append(error.code)
        self.stream.end(error)

    def close(self) -> None:
        self.told.append("close")


class World:
    """A joined stream, its reader, and its owner: `heard` and `ended` are what they were told."""

    def __init__(self) -> None:
        self.heard = ""
        self.ends: list[GatewayError | None] = []
        self.ended: list[GatewayError | None] = []
        self.left = 0
        self.full = False
        self.joined = Letters(self)
        self.joined.stream.attach(self)

    def leave(self) -> None:
        self.left += 1

    def write(self, events: list[Event]) -> bool:
        self.heard += "".join(event.data.decode() for event in events)
        return self.full

    def end(self, error: GatewayError | None) -> None:
        self.ends.append(error)

    def follow(self, kind: str = "k") -> Upstream:
        upstream = Upstream()
        self.joined.follow(upstream.stream, kind, self.ended.append)
        return upstream


def test_one_comes_after_the_other_and_the_owner_is_told_of_each_end() -> None:
    world = World()
    for kind, text, error in (("first", "ab", None), ("second", "cd", TRUNCATED)):
        upstream = world.follow(kind)
        upstream.stream.publish(events(text))
        upstream.stream.end(error)
    assert (world.heard, world.ended, world.joined.kinds) == ("abcd", [None, TRUNCATED], ["first", "second"])
    assert world.ends == []
    world.joined.stop_for(None)
    assert (world.ends, world.joined.over) == ([None], True)


def test_the_owner_sees_each_event_before_it_goes_on() -> None:
    world, upstream, seen = World(), Upstream(), list[tuple[bytes, str]]()
    world.joined.follow(
        upstream.stream, "k", world.ended.append, see=lambda event: seen.append((event.data, world.heard))
    )
    upstream.stream.publish(events("ab"))
    assert seen == [(b"a", ""), (b"b", "a")]


def test_a_full_reader_pauses_whichever_is_followed() -> None:
    world = World()
    world.full = True
    upstream = world.follow()
    upstream.stream.publish(events("a"))
    assert upstream.told == ["pause"]
    world.full = False
    world.joined.stream.drained()
    assert upstream.told == ["pause", "resume"]
    upstream.stream.end()
    later = world.follow()
    world.full = True
    later.stream.publish(events("b"))
    assert (upstream.told, later.told) == (["pause", "resume"], ["pause"])


def test_a_failure_within_ends_it_and_the_followed_one_is_let_go() -> None:
    world = World()
    upstream = world.follow()
    upstream.stream.publish(events("a!b"))
    assert world.heard == "a"
    assert [error.message for error in world.ends if error is not None] == ["it failed"]
    assert world.ended == world.ends
    assert upstream.told == ["close"]
    assert world.left == 0


def test_who_leaves_stops_what_is_followed_and_the_owner() -> None:
    world = World()
    upstream = world.follow()
    world.joined.stream.cancel()
    assert (upstream.told, world.left, world.joined.over) == (["close"], 1, True)
    assert (world.ended, world.ends) == ([], [])
    late = world.follow()
    assert late.told == ["close"]


def test_an_interruption_reaches_what_is_followed_and_ends_it() -> None:
    world = World()
    upstream = world.follow()
    world.joined.stream.interrupt(DRAINING)
    assert upstream.told == ["draining"]
    assert (world.ended, world.ends, world.joined.error) == ([DRAINING], [DRAINING], DRAINING)


def test_between_two_there_is_nobody_to_pause_and_an_interruption_ends_it_all_the_same() -> None:
    world = World()
    world.follow().stream.end()
    world.joined.pause()
    world.joined.resume()
    world.joined.stream.interrupt(DRAINING)
    assert world.ends == [DRAINING]
