"""The last events of a stream: fetched from anywhere, let go from the oldest on, and paid for on the shelf."""

from __future__ import annotations

from proxy.streams.backlog import FRAME_COST_BYTES, Backlog, Keeping
from proxy.wire.sse import Event

COST = 1 + FRAME_COST_BYTES


class Shelf:
    def __init__(self, room_bytes: int = 10**9) -> None:
        self.held_bytes = 0
        self._room_bytes = room_bytes

    def hold(self, more_bytes: int) -> bool:
        self.held_bytes += more_bytes
        return self.held_bytes > self._room_bytes


def kept(frames: int = 1000, bytes: int = 10**9, shelf: Shelf | None = None) -> Backlog:
    return Backlog(Keeping(frames, bytes, shelf or Shelf()))


def events(text: str) -> list[Event]:
    """One of each letter, named after it."""
    return [Event(b"", b"", letter.encode(), letter.upper().encode()) for letter in text]


def text_of(fetched: list[Event]) -> str:
    assert all(event.type == event.data.upper() for event in fetched)
    return b"".join(event.data for event in fetched).decode()


def test_what_is_kept_can_be_had_from_anywhere_and_again() -> None:
    backlog = kept()
    assert not backlog.add(events("abc"))
    assert not backlog.add(events("d"))
    assert [text_of(backlog.fetch(start, 2)) for start in (0, 2, 0)] == ["ab", "cd", "ab"]
    assert (len(backlog), backlog.cost_from(1), backlog.cost_from(4)) == (4, 3 * COST, 0)


def test_what_only_waits_is_gone_when_it_was_had() -> None:
    backlog = Backlog(None)
    assert not backlog.add(events("abc"))
    assert text_of(backlog.fetch(0, 2)) == "ab"
    assert (len(backlog), text_of(backlog.fetch(0, 1))) == (1, "c")


def test_more_events_than_may_be_are_too_much_and_the_oldest_go() -> None:
    backlog = kept(frames=2)
    assert not backlog.add(events("ab"))
    assert backlog.add(events("cd"))
    backlog.make_room(wanted=0)
    assert text_of(backlog.fetch(0, len(backlog))) == "cd"


def test_more_bytes_than_may_be_are_too_much_and_the_oldest_go() -> None:
    backlog = kept(bytes=2 * COST)
    assert not backlog.add(events("ab"))
    assert backlog.add(events("c"))
    backlog.make_room(wanted=0)
    assert text_of(backlog.fetch(0, len(backlog))) == "bc"


def test_where_the_shelf_is_full_the_oldest_go() -> None:
    shelf = Shelf(3 * COST)
    others, backlog = kept(shelf=shelf), kept(shelf=shelf)
    assert not others.add(events("ab"))
    assert backlog.add(events("xy"))
    backlog.make_room(wanted=0)
    assert (len(others), text_of(backlog.fetch(0, len(backlog)))) == (2, "y")


def test_what_the_follower_has_yet_to_take_never_goes() -> None:
    backlog = kept(frames=1)
    assert backlog.add(events("abcd"))
    backlog.make_room(wanted=3)
    assert text_of(backlog.fetch(0, len(backlog))) == "bcd"
    backlog.stop_keeping(wanted=2)
    assert len(backlog) == 2
    assert text_of(backlog.fetch(0, 2)) == "cd"


def test_the_shelf_gets_everything_back() -> None:
    shelf = Shelf()
    backlog = kept(frames=2, shelf=shelf)
    backlog.add(events("abcd"))
    assert shelf.held_bytes == 4 * COST
    backlog.make_room(wanted=0)
    assert shelf.held_bytes == 2 * COST
    backlog.stop_keeping(wanted=1)
    assert shelf.held_bytes == 0
    backlog.add(events("e"))
    assert (shelf.held_bytes, text_of(backlog.fetch(0, 2))) == (0, "de")


def test_what_nobody_wants_is_dropped() -> None:
    backlog = Backlog(None)
    backlog.add(events("ab"))
    backlog.clear()
    assert (len(backlog), backlog.cost_from(0)) == (0, 0)
