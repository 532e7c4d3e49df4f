"""Masked or not, however the frames are cut; a real client's frames are the reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from proxy.wire.masking import MaskWatch

SIZES = (0, 1, 125, 126, 300, 65_535, 65_536, 70_000)


def frame(size: int, *, masked: bool) -> bytes:
    return Frame(Opcode.TEXT, b"x" * size).serialize(mask=masked)


@pytest.mark.parametrize("size", SIZES)
def test_masked_frames_pass_and_an_unmasked_one_among_them_does_not(size: int) -> None:
    watch = MaskWatch()
    assert watch.all_masked(frame(size, masked=True) * 3)
    assert not watch.all_masked(frame(size, masked=False))


def test_an_unmasked_frame_behind_masked_ones_in_one_read_is_seen() -> None:
    assert not MaskWatch().all_masked(frame(5, masked=True) + frame(300, masked=True) + frame(5, masked=False))


@pytest.mark.parametrize("size", SIZES[:5])
def test_frames_cut_at_every_byte_are_followed(size: int) -> None:
    data = frame(size, masked=True) + frame(1, masked=True)
    for cut in range(len(data)):
        watch = MaskWatch()
        assert watch.all_masked(data[:cut])
        assert watch.all_masked(data[cut:])
        assert not watch.all_masked(frame(1, masked=False))


@given(st.lists(st.integers(0, 400), max_size=6), st.lists(st.integers(1, 50), max_size=40), st.booleans())
def test_any_cuts_give_the_same_verdict(sizes: list[int], steps: list[int], last_masked: bool) -> None:
    data = b"".join(frame(size, masked=True) for size in sizes) + frame(7, masked=last_masked)
    watch, at, verdicts = MaskWatch(), 0, []
    for step in [*steps, len(data)]:
        verdicts.append(watch.all_masked(data[at : at + step]))
        at += step
        if not verdicts[-1]:
            break
    assert verdicts[-1] == last_masked
