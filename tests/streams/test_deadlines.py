"""What is due when: in order of time, as said last, and nothing that was taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.streams.deadlines import Deadlines


def due(deadlines: Deadlines[str], now: float) -> str:
    """All that is due by `now`, in order."""
    items = []
    while (item := deadlines.pop(now)) is not None:
        items.append(item)
    return "".join(items)


def test_what_is_due_comes_in_the_order_of_time() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for item, at in (("c", 3), ("a", 1), ("b", 2), ("d", 9)):
        deadlines.set(item, at)
    assert deadlines.next() == 1
    assert due(deadlines, 0.9) == ""
    assert due(deadlines, 3) == "abc"
    assert (deadlines.next(), len(deadlines)) == (9, 1)


def test_what_is_due_at_one_time_comes_in_the_order_it_was_said() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for item in "xyz":
        deadlines.set(item, 1)
    deadlines.set("x", 1)
    assert due(deadlines, 1) == "yzx"


def test_only_what_was_said_last_counts() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1)
    deadlines.set("b", 2)
    deadlines.set("a", 5)
    assert due(deadlines, 2) == "b"
    deadlines.set("a", 3)
    assert due(deadlines, 3) == "a"
    assert due(deadlines, 100) == ""


def test_what_was_taken_back_is_never_due() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1)
    deadlines.drop("a")
    deadlines.drop("b")
    assert deadlines.next() is None
    assert due(deadlines, 100) == ""
    deadlines.set("a", 7)
    assert deadlines.next() == 7


def test_without_a_time_the_first_one_is_taken() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("b", 2)
    deadlines.set("a", 1)
    assert [deadlines.pop(), deadlines.pop(), deadlines.pop()] == ["a", "b", None]


def test_what_was_said_and_changed_a_thousand_times_does_not_pile_up() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("b", 1000)
    for at in range(1000):
        deadlines.set("a", at)
        assert len(deadlines._heap) <= 2 * 2 + 64 + 1
    assert due(deadlines, 2000) == "ab"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 20))), max_size=60))
def test_it_is_a_table_that_is_searched_for_the_first(steps: list[tuple[str, int | None]]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    table: dict[str, int] = {}
    for item, at in steps:
        table.pop(item, None)
        if at is None:
            deadlines.drop(item)
        else:
            deadlines.set(item, at)
            table[item] = at
        assert deadlines.next() == min(table.values(), default=None)
        assert len(deadlines) == len(table)
    assert sorted(due(deadlines, 10)) == sorted(item for item, at in table.items() if at <= 10)
