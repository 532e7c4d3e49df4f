"""Masked or not, too many or not, however the frames are cut; a real client's frames are the reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from proxy.wire.client_frames import IDLE_A_SECOND, IDLE_AT_ONCE, SMALL_BYTES, Broken, FrameWatch

SIZES = (0, 1, 125, 126, 300, 65_535, 65_536, 70_000)


def frame(size: int, *, masked: bool = True, opcode: Opcode = Opcode.TEXT, fin: bool = True) -> bytes:
    return Frame(opcode, b"x" * size, fin).serialize(mask=masked)


def fragments(size: int, count: int) -> bytes:
    """A message in so many pieces, less its end."""
    return frame(size, fin=False) + frame(size, opcode=Opcode.CONT, fin=False) * (count - 1)


# ---- masks ----


@pytest.mark.parametrize("size", SIZES)
def test_masked_frames_pass_and_an_unmasked_one_among_them_does_not(size: int) -> None:
    watch = FrameWatch(0.0)
    assert watch.look(frame(size) * 3, 0.0) is None
    assert watch.look(frame(size, masked=False), 0.0) is Broken.UNMASKED


def test_an_unmasked_frame_behind_masked_ones_in_one_read_is_seen() -> None:
    data = frame(5) + frame(300) + frame(5, masked=False)
    assert FrameWatch(0.0).look(data, 0.0) is Broken.UNMASKED


@pytest.mark.parametrize("size", SIZES[:5])
def test_frames_cut_at_every_byte_are_followed(size: int) -> None:
    data = frame(size) + frame(1)
    for cut in range(len(data)):
        watch = FrameWatch(0.0)
        assert watch.look(data[:cut], 0.0) is None
        assert watch.look(data[cut:], 0.0) is None
        assert watch.look(frame(1, masked=False), 0.0) is Broken.UNMASKED


@given(st.lists(st.integers(0, 400), max_size=6), st.lists(st.integers(1, 50), max_size=40), st.booleans())
def test_any_cuts_give_the_same_verdict(sizes: list[int], steps: list[int], last_masked: bool) -> None:
    data = b"".join(frame(size) for size in sizes) + frame(7, masked=last_masked)
    watch, at, broken = FrameWatch(0.0), 0, None
    for step in [*steps, len(data)]:
        broken = watch.look(data[at : at + step], 0.0)
        at += step
        if broken is not None:
            break
    assert broken is (None if last_masked else Broken.UNMASKED)


# ---- floods ----

IDLE = {
    "pings": frame(0, opcode=Opcode.PING),
    "pongs": frame(125, opcode=Opcode.PONG),
    "empty fragments": frame(0, opcode=Opcode.CONT, fin=False),
    "small fragments": frame(SMALL_BYTES - 1, opcode=Opcode.CONT, fin=False),
}


@pytest.mark.parametrize("kind", IDLE)
@pytest.mark.parametrize("a_read", [1, 7, IDLE_AT_ONCE + 1])
def test_more_idle_frames_than_anybody_has_a_use_for_are_a_flood(kind: str, a_read: int) -> None:
    watch, seen = FrameWatch(0.0), 0
    while watch.look(IDLE[kind] * a_read, 0.0) is None:
        seen += a_read
    assert IDLE_AT_ONCE - a_read < seen <= IDLE_AT_ONCE


@pytest.mark.parametrize("kind", IDLE)
def test_a_few_idle_frames_a_second_are_none(kind: str) -> None:
    watch = FrameWatch(0.0)
    assert watch.look(IDLE[kind] * IDLE_AT_ONCE, 0.0) is None
    for second in range(1, 100):
        assert watch.look(IDLE[kind] * int(IDLE_A_SECOND), float(second)) is None
    assert watch.look(IDLE[kind], 99.0) is Broken.TOO_MANY


@pytest.mark.parametrize(
    "data",
    [
        frame(0) * 20_000,
        frame(7, opcode=Opcode.BINARY) * 20_000,
        fragments(SMALL_BYTES, 65_536),
        (fragments(10, 2) + frame(5, opcode=Opcode.CONT)) * 300,
    ],
    ids=["messages", "binary ones", "a message of large fragments", "a few small fragments"],
)
def test_what_carries_something_is_no_flood(data: bytes) -> None:
    assert FrameWatch(0.0).look(data, 0.0) is None


# ---- a first message ----


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_a_first_message_within_its_limit_frees_those_that_follow(size: int) -> None:
    watch = FrameWatch(0.0, first_bytes=1000)
    assert watch.look(frame(100, opcode=Opcode.PING) + frame(size) + frame(70_000), 0.0) is None


@pytest.mark.parametrize(
    "data",
    [frame(1001), frame(70_000)[:14], fragments(400, 3)],
    ids=["whole", "only its head", "in fragments"],
)
def test_a_first_message_beyond_its_limit_is_too_large(data: bytes) -> None:
    assert FrameWatch(0.0, first_bytes=1000).look(data, 0.0) is Broken.TOO_LARGE


def test_fragments_with_a_ping_between_them_are_one_first_message() -> None:
    watch = FrameWatch(0.0, first_bytes=1000)
    data = frame(600, fin=False) + frame(100, opcode=Opcode.PING) + frame(400, opcode=Opcode.CONT) + frame(5000)
    assert watch.look(data, 0.0) is None
