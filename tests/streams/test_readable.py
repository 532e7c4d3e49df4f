"""What of a batch can stand in a frame: as it is, made so, or not at all."""

from __future__ import annotations

import pytest

from proxy.streams.readable import readable
from proxy.wire.sse import Event


def read(*data: bytes, known: bool = True) -> tuple[list[bytes], int]:
    """The data of what is left, and how many were malformed."""
    malformed: list[None] = []
    events = [Event(each, each, each, b"n") for each in data]
    left = readable(events, known=known, on_malformed=lambda: malformed.append(None))
    assert {event.type for event in left} <= {b"n"}
    return [event.data for event in left], len(malformed)


def test_what_can_stand_in_a_frame_is_the_event_itself() -> None:
    plain = Event(b"", b"", b'{"a":"\xc3\xa9"}')
    assert readable([plain], known=True, on_malformed=lambda: None) == [plain]
    assert readable([plain], known=True, on_malformed=lambda: None)[0] is plain


@pytest.mark.parametrize(
    ("data", "framed"),
    [(b'{"a":\n1}', b'{"a": 1}'), (b'{"a":"\xff"}', rb'{"raw":"{\"a\":\"\\xff\"}"}')],
)
def test_what_can_be_made_fit_is_made_so(data: bytes, framed: bytes) -> None:
    assert read(data) == ([framed], 0)


@pytest.mark.parametrize("data", [b"oops", b"[1]", b'{"a":1},"type":"done"'])
def test_what_is_no_object_has_no_place_in_a_protocol_of_objects(data: bytes) -> None:
    assert read(b'{"a":1}', data, b'{"b":2}') == ([b'{"a":1}', b'{"b":2}'], 1)


def test_in_a_protocol_that_nobody_knows_it_is_text() -> None:
    assert read(b"oops", known=False) == ([b'{"raw":"oops"}'], 0)


@pytest.mark.parametrize("known", [True, False])
def test_the_marker_of_the_end_is_for_those_that_read_sse(known: bool) -> None:
    assert read(b"[DONE]", known=known) == ([], 0)
