"""Heads that say how long their body is: what two that are the same but for that have in common, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.sized_heads import SizedHead, sized_head

BEFORE = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: "
AFTER = b"\r\nX-A: b 7"
HEAD = BEFORE + b"12" + AFTER + b"\r\n\r\n"
REST = BEFORE + AFTER


def test_a_head_is_told_less_the_digits_of_its_bodys_length() -> None:
    assert sized_head(HEAD) == SizedHead(REST, len(HEAD), 12)


def test_what_comes_behind_a_head_changes_nothing() -> None:
    assert sized_head(HEAD + b"twelve bytes" + HEAD) == SizedHead(REST, len(HEAD), 12)


@pytest.mark.parametrize("digits", [b"0", b"7", b"007", b"123456789"])
def test_heads_that_differ_in_the_length_alone_have_the_same_rest(digits: bytes) -> None:
    head = sized_head(BEFORE + digits + AFTER + b"\r\n\r\n")
    assert head == SizedHead(REST, len(REST) + len(digits) + 4, int(digits))


def test_an_answers_head_is_one_too() -> None:
    head = sized_head(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    assert head == SizedHead(b"HTTP/1.1 200 OK\r\ncontent-length: ", 38, 2)


def test_a_head_that_is_not_whole_is_none_wherever_it_ends() -> None:
    assert [sized_head(HEAD[:at]) for at in range(len(HEAD))] == [None] * len(HEAD)


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"Content-length", b"content-Length"])
def test_the_name_may_be_written_in_the_usual_ways(name: bytes) -> None:
    assert sized_head(b"POST / HTTP/1.1\r\n" + name + b": 3\r\n\r\nabc") is not None


UNTOLD = {
    "no length": b"Host: h",
    "capitals": b"CONTENT-LENGTH: 3",
    "no blank": b"Content-Length:3",
    "two blanks": b"Content-Length:  3",
    "a tab": b"Content-Length:\t3",
    "a blank behind": b"Content-Length: 3 ",
    "a blank before the colon": b"Content-Length : 3",
    "a sign": b"Content-Length: +3",
    "hexadecimal": b"Content-Length: 0x3",
    "a list": b"Content-Length: 3, 3",
    "nothing": b"Content-Length: ",
    "ten digits": b"Content-Length: 0000000003",
    "other digits": "Content-Length: ٣".encode(),
    "a longer name": b"X-Content-Length: 3",
    "folded": b"X: a\r\n Content-Length: 3",
    "bare LF in front": b"X: a\nContent-Length: 3",
    "bare CR in front": b"X: a\rContent-Length: 3",
    "bare LF behind": b"Content-Length: 3\nX: a",
}


@pytest.mark.parametrize("line", UNTOLD.values(), ids=UNTOLD)
def test_a_length_written_otherwise_is_for_a_parser_to_judge(line: bytes) -> None:
    assert sized_head(b"POST / HTTP/1.1\r\n" + line + b"\r\n\r\nabc") is None


def test_a_length_in_the_body_is_none_of_the_heads() -> None:
    assert sized_head(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n\r\nContent-Length: 3\r\n\r\n") is None


def test_a_head_cannot_be_empty() -> None:
    assert sized_head(b"\r\n\r\nContent-Length: 3\r\n\r\n") is None


def test_of_two_lengths_the_second_stays_in_the_rest() -> None:
    """What was refused once with two of them cannot be the rest of a head with one."""
    head = sized_head(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n")
    assert head == SizedHead(b"POST / HTTP/1.1\r\nContent-Length: \r\nContent-Length: 4", 57, 3)


@given(st.integers(0, len(HEAD) - 1), st.integers(0, 255))
def test_any_other_byte_makes_another_head(at: int, byte: int) -> None:
    changed = HEAD[:at] + bytes([byte]) + HEAD[at + 1 :]
    head = sized_head(changed)
    if head is not None and head.rest == REST:
        assert (changed[: len(BEFORE)], changed[len(BEFORE) + 2 :]) == (BEFORE, AFTER + b"\r\n\r\n")


PIECES = [b"\r\n", b"Content-Length: ", b"content-length: ", b"1", b"23", b": ", b"X", BEFORE, AFTER, b"\r\n\r\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_only_this_head_with_other_digits_has_its_rest(data: bytes) -> None:
    head = sized_head(data)
    if head is not None and head.rest == REST:
        digits = data[len(BEFORE) : head.body_at - 4 - len(AFTER)]
        assert data[: head.body_at] == BEFORE + digits + AFTER + b"\r\n\r\n"
        assert digits.isdigit()
        assert head.length == int(digits)
