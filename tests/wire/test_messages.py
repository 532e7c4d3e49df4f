"""A server's frames read, and our own written; the websockets library is the other side."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets import frames
from websockets.protocol import SERVER, Protocol

from proxy.wire.messages import FrameError, Message, MessageReader, Opcode, closing, masked_frame

LARGEST = 1 << 20
SIZES = (0, 1, 125, 126, 300, 65_535, 65_536, 70_000)


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """As a server sends it."""
    return frames.Frame(frames.Opcode(opcode), payload, fin=fin).serialize(mask=False)


def read(*pieces: bytes, largest: int = LARGEST) -> list[Message]:
    reader = MessageReader(largest)
    return [message for piece in pieces for message in reader.feed(piece)]


def failure(*pieces: bytes, largest: int = LARGEST) -> int:
    """What a server that sends this is closed with."""
    with pytest.raises(FrameError) as raised:
        read(*pieces, largest=largest)
    return raised.value.code


# ---- in ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_a_message_of_any_size_is_read(opcode: Opcode, size: int) -> None:
    assert read(frame(opcode, b"x" * size)) == [Message(opcode, b"x" * size)]


SEVERAL = (
    frame(1, "ü🌊".encode()),
    frame(9, b"are you there"),
    frame(2, b"\xff\x00", fin=False),
    frame(10, b""),
    frame(0, b"\x01", fin=False),
    frame(0, b""),
    frame(2, b"y" * 200),
    frame(8, b"\x03\xe8bye"),
)
IN_SEVERAL = [
    Message(Opcode.TEXT, "ü🌊".encode()),
    Message(Opcode.PING, b"are you there"),
    Message(Opcode.PONG, b""),
    Message(Opcode.BINARY, b"\xff\x00\x01"),
    Message(Opcode.BINARY, b"y" * 200),
    Message(Opcode.CLOSE, b"\x03\xe8bye"),
]


def test_fragments_are_joined_with_control_frames_between_them() -> None:
    assert read(b"".join(SEVERAL)) == read(*SEVERAL) == IN_SEVERAL


def test_frames_cut_at_every_byte_are_the_same_messages() -> None:
    data = b"".join(SEVERAL)
    for cut in range(1, len(data)):
        assert read(data[:cut], data[cut:]) == IN_SEVERAL
    assert read(*(data[at : at + 1] for at in range(len(data)))) == IN_SEVERAL


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.text(max_size=150), min_size=1, max_size=4)), max_size=5), st.data()
)
def test_any_fragments_and_cuts_give_the_messages_that_were_sent(
    sent: list[tuple[bool, list[str]]], data: st.DataObject
) -> None:
    wire, expected = b"", []
    for is_text, texts in sent:
        pieces = [text.encode() for text in texts]
        opcode = Opcode.TEXT if is_text else Opcode.BINARY
        for number, piece in enumerate(pieces):
            wire += frame(opcode if number == 0 else 0, piece, fin=number == len(pieces) - 1)
        expected.append(Message(opcode, b"".join(pieces)))
    reader, at = MessageReader(LARGEST), 0
    got: list[Message] = []
    while at < len(wire):
        size = data.draw(st.integers(1, 100))
        got += reader.feed(wire[at : at + size])
        at += size
    assert got == expected


BROKEN: dict[str, tuple[bytes, int]] = {
    "a reserved bit": (b"\xc1\x00", 1002),
    "a reserved bit on a control frame": (b"\xb9\x00", 1002),
    "an unknown data opcode": (b"\x83\x00", 1002),
    "an unknown control opcode": (b"\x8b\x00", 1002),
    "masked": (frames.Frame(frames.Opcode.TEXT, b"x").serialize(mask=True), 1002),
    "a fragmented ping": (b"\x09\x00", 1002),
    "a ping of 126 bytes": (b"\x89\x7e\x00\x7e", 1002),
    "a fragment without a beginning": (frame(0, b"x"), 1002),
    "a message within another": (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
    "a message within another that is empty so far": (frame(1, b"", fin=False) + frame(2, b"y"), 1002),
    "a text that is not UTF-8": (frame(1, b"\xff"), 1007),
    "a text of fragments that is not UTF-8": (frame(1, b"\xc3", fin=False) + frame(0, b"("), 1007),
    "a length of 2^63": (b"\x82\x7f\x80" + b"\x00" * 7, 1009),
    "a close of one byte": (frame(8, b"\x03"), 1002),
    "a close with a reason that is not UTF-8": (frame(8, b"\x03\xe8\xff"), 1007),
    **{
        f"a close with {code}": (frame(8, code.to_bytes(2)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_the_protocol_has_its_code(case: str) -> None:
    data, code = BROKEN[case]
    assert failure(data) == code
    assert failure(*(data[at : at + 1] for at in range(len(data)))) == code


def test_what_came_before_the_breach_is_still_given() -> None:
    messages = MessageReader(LARGEST).feed(frame(1, b"one") + frame(2, b"two") + b"\xff\x00")
    assert [next(messages).payload, next(messages).payload] == [b"one", b"two"]
    with pytest.raises(FrameError):
        next(messages)


def test_the_largest_message_passes_and_one_byte_more_is_refused_by_its_head() -> None:
    assert len(read(frame(2, b"x" * 1000), largest=1000)[0].payload) == 1000
    assert failure(frame(2, b"x" * 1001)[:4], largest=1000) == 1009
    fragments = frame(2, b"x" * 600, fin=False)
    assert len(read(fragments, frame(0, b"x" * 400), largest=1000)[0].payload) == 1000
    assert failure(fragments, frame(0, b"x" * 401)[:4], largest=1000) == 1009


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", (None, "")),
        (b"\x03\xe8", (1000, "")),
        (b"\x0f\xa0" + "grüße".encode(), (4000, "grüße")),
        (b"\x03\xf6", (1014, "")),
    ],
)
def test_a_close_says_its_code_and_reason(payload: bytes, said: tuple[int | None, str]) -> None:
    assert closing(payload) == said


# ---- out ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_a_strict_server_reads_our_frames(opcode: Opcode, size: int) -> None:
    payload = os.urandom(size) if opcode is Opcode.BINARY else b"x" * size
    server = Protocol(SERVER, max_size=None)
    server.receive_data(masked_frame(opcode, payload, os.urandom(4)) + masked_frame(Opcode.PING, b"p", b"abcd"))
    assert server.parser_exc is None
    assert server.events_received() == [
        frames.Frame(frames.Opcode(opcode), payload),
        frames.Frame(frames.Opcode.PING, b"p"),
    ]


@given(st.binary(max_size=70), st.binary(min_size=4, max_size=4))
def test_any_mask_comes_off_again(payload: bytes, mask: bytes) -> None:
    sent = masked_frame(Opcode.BINARY, payload, mask)
    assert sent[2:6] == mask
    assert bytes(byte ^ mask[at % 4] for at, byte in enumerate(sent[6:])) == payload
