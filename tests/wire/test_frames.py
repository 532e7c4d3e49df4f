"""Ready-made frames, read back by the websockets library's own protocol."""

from __future__ import annotations

import json

import pytest
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CLIENT, Protocol, State

from proxy.wire.frames import close_frame, one_line, ping_frame, pong_frame, text_frame, text_payload


def received(data: bytes) -> list[Frame]:
    """What a strict client reads from `data`, which must be whole frames."""
    client = Protocol(CLIENT, max_size=None)
    client.receive_data(data)
    frames = [event for event in client.events_received() if isinstance(event, Frame)]
    assert client.parser_exc is None or client.state is State.CLOSING
    return frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1_000_000])
def test_text_frame_is_read_back_at_every_length_form(size: int) -> None:
    payload = b"x" * size
    assert received(text_frame(payload)) == [Frame(Opcode.TEXT, payload)]


def test_text_frame_takes_the_shortest_length_form() -> None:
    assert [len(text_frame(b"x" * size)) - size for size in (125, 126, 65535, 65536)] == [2, 4, 4, 10]


def test_several_frames_in_one_write_are_several_messages() -> None:
    written = text_frame(b"{}") + ping_frame(b"t") + text_frame("ü".encode()) + ping_frame()
    assert received(written) == [
        Frame(Opcode.TEXT, b"{}"),
        Frame(Opcode.PING, b"t"),
        Frame(Opcode.TEXT, "ü".encode()),
        Frame(Opcode.PING, b""),
    ]


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 3000, 4429, 4999])
def test_close_frame_carries_code_and_reason(code: int) -> None:
    client = Protocol(CLIENT)
    client.receive_data(close_frame(code, "rate_limit_exceeded"))
    assert client.close_rcvd is not None
    assert (client.close_rcvd.code, client.close_rcvd.reason) == (code, "rate_limit_exceeded")


@pytest.mark.parametrize("reason", ["x" * 500, "x" + "ü" * 200, "\N{WATER WAVE}" * 60, "half \ud83c"])
def test_close_reason_is_cut_between_two_characters(reason: str) -> None:
    client = Protocol(CLIENT)
    client.receive_data(close_frame(CloseCode.NORMAL_CLOSURE, reason))
    assert client.parser_exc is None
    assert client.close_rcvd is not None
    assert client.close_rcvd.reason.startswith(reason[:5].replace("\ud83c", "?"))
    assert len(client.close_rcvd.reason.encode()) <= 123


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000, 70000])
def test_close_frame_refuses_codes_that_never_stand_in_one(code: int) -> None:
    with pytest.raises(ValueError, match="no close code"):
        close_frame(code)


def test_a_pong_brings_back_what_the_ping_carried() -> None:
    for size in (0, 1, 125):
        assert received(pong_frame(b"x" * size)) == [Frame(Opcode.PONG, b"x" * size)]


def test_ping_frame_refuses_more_than_a_control_frame_holds() -> None:
    assert received(ping_frame(b"x" * 125)) == [Frame(Opcode.PING, b"x" * 125)]
    with pytest.raises(ValueError, match="125"):
        ping_frame(b"x" * 126)


def test_one_line_makes_each_line_end_one_space() -> None:
    assert one_line(b"a\nb\rc\r\nd\n\re\r\n") == b"a b c d  e "


def test_one_line_gives_back_the_same_object_when_there_is_nothing_to_do() -> None:
    data = b'{"a":"b"}'
    assert one_line(data) is data


@pytest.mark.parametrize("data", [b'{"a":1}', '{"a":"ü\u2028\x85"}'.encode(), b"[DONE]", b""])
def test_text_payload_of_valid_utf8_is_the_data_itself(data: bytes) -> None:
    assert text_payload(data) is data


def test_text_payload_of_several_lines_is_one_line() -> None:
    assert text_payload('{\n"a":\r\n"ü"}'.encode()) == '{ "a": "ü"}'.encode()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b'{"a":"\xff"}', r'{"a":"\xff"}'),
        (b'half \xf0\x9f "quoted" \\ \x00 \xc3', "\\".join(["half ", "xf0", 'x9f "quoted" ', " \x00 ", "xc3"])),
        (b"two\nlines\xfe", "two\nlines\\xfe"),
        (b"\xed\xa0\xbd", r"\xed\xa0\xbd"),
    ],
)
def test_text_payload_of_other_bytes_is_readable_json_in_one_valid_text_frame(data: bytes, shown: str) -> None:
    payload = text_payload(data)
    assert json.loads(payload) == {"raw": shown}
    assert b"\n" not in payload
    assert received(text_frame(payload)) == [Frame(Opcode.TEXT, payload)]
