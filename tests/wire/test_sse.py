"""The event parser against the standard's cases, vendors' streams, a plain reference, and every cut of the bytes."""

from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.sse import Event, EventTooLarge, Parser, encode
from tests.support.sse_streams import SMALL_STREAMS, TEN_MEGABYTES

BOM = b"\xef\xbb\xbf"
LIMIT = 16 << 20
X = b"x" * 2048

STANDARD_CASES = [
    (
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\r"
        b"data_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
        [b"\0\n 2\n1\n3\n\n4"],
    ),
    (b"data:\n\ndata\ndata\n\ndata:test\n\n", [b"", b"\n", b"test"]),
    (b"data:test\r\ndata\ndata:test\r\n\r", [b"test\n\ntest"]),
    (b"data:1\r:\0\n:\r\ndata:2\n:" + X + b"\rdata:3\n:data:fail\r:" + X + b"\ndata:4\n\n", [b"1\n2\n3\n4"]),
    (b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:comment\ndata:test\n\n", [b"test\n\ntest"]),
    (b"retry:1000\ndata:test1\n\nid:test\ndata:test2", [b"test1"]),
    (BOM + b"data:1\n\n", [b"1"]),
    (BOM + BOM + b"data:1\n\ndata:2\n\n", [b"2"]),
    (b"id:1\0\ndata:a\n\n", [b"a"]),
    (b"event:\ndata:a\n\n", [b"a"]),
    (b"data: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
    (b"event: ping\n\ndata: a\n\n", [b"a"]),
    (b"data: \xe2\x80\xa8\xc2\x85\x0b\x0c\x1c\n\n", [b"\xe2\x80\xa8\xc2\x85\x0b\x0c\x1c"]),
    (b": OPENROUTER PROCESSING\n\ndata:{}\n: inside\n\n", [b"{}"]),
    (b"\n\n\ndata: a\n\n\ndata: b\n\n: c\n", [b"a", b"b"]),
    (b"event: x\n\n\ndata: {}\n\nevent: y\ndata:1\ndata: 2\n\ndata: \n\n", [b"{}", b"1\n2", b""]),
]
LINE_ENDS = {"as it is": None, "LF": b"\n", "CR": b"\r", "CRLF": b"\r\n"}

Seen = tuple[bytes, bytes, bytes | None]  # data, type, id


def with_line_ends(stream: bytes, end: bytes | None) -> bytes:
    if end is None:
        return stream
    return stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", end)


def read(reads: list[bytes], parser: Parser | None = None) -> list[Event]:
    parser = parser or Parser(LIMIT)
    return [event for data in reads for event in parser.feed(data)]


def seen(events: list[Event]) -> list[Seen]:
    return [(event.data, event.type, event.id) for event in events]


def reference(stream: bytes) -> tuple[list[Seen], bool]:
    """The standard, read out slowly: the events, and whether an event is left unfinished."""
    *lines, half = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events: list[Seen] = []
    data: list[bytes] = []
    kind, last_id, begun = b"", None, False
    for line in lines:
        if line == b"":
            if data:
                events.append((b"\n".join(data), kind, last_id))
            data, kind, last_id, begun = [], b"", None, False
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        begun = begun or not line.startswith(b":")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
        elif name == b"id" and b"\0" not in value:
            last_id = value
    return events, begun or (half != b"" and not half.startswith(b":"))


def check(stream: bytes, reads: list[bytes]) -> list[Event]:
    """Everything that must hold of any stream in any cut."""
    parser = Parser(LIMIT)
    events = read(reads, parser)
    expected, unfinished = reference(stream)
    assert seen(events) == expected
    assert parser.unfinished == unfinished
    assert b"".join(event.raw for event in events) + parser.pending == stream.removeprefix(BOM)
    wires = b"".join(event.wire for event in events)
    assert not any(line.startswith(b":") for line in wires.splitlines())
    assert reference(wires) == (expected, False)
    for event in events:
        assert reference(event.wire) == ([(event.data, event.type, event.id)], False)
        assert event.wire[0] not in b"\r\n"
    return events


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize(("stream", "expected"), STANDARD_CASES)
def test_standard_case_whole_cut_anywhere_and_byte_by_byte(
    stream: bytes, expected: list[bytes], end: bytes | None
) -> None:
    stream = with_line_ends(stream, end)
    bytewise = [stream[i : i + 1] for i in range(len(stream))]
    cuts = [[stream[:i], stream[i:]] for i in range(len(stream) + 1)]
    for reads in ([stream], bytewise, *cuts):
        assert [event.data for event in check(stream, reads)] == expected


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("stream", SMALL_STREAMS.values(), ids=SMALL_STREAMS)
def test_vendor_stream_gives_the_same_events_cut_at_every_byte(stream: bytes, end: bytes | None) -> None:
    stream = with_line_ends(stream, end)
    whole = check(stream, [stream])
    assert len(whole) > 0
    assert seen(check(stream, [stream[i : i + 1] for i in range(len(stream))])) == seen(whole)
    for i in range(1, len(stream)):
        assert seen(read([stream[:i], stream[i:]])) == seen(whole)


@pytest.mark.parametrize("stream", SMALL_STREAMS.values(), ids=SMALL_STREAMS)
def test_vendor_stream_gives_the_same_events_in_reads_of_any_size(stream: bytes) -> None:
    for size in (2, 3, 7, 64, 200, 333):
        check(stream, [stream[i : i + size] for i in range(0, len(stream), size)])


any_example = settings(derandomize=True, database=None, deadline=None, max_examples=300)
TOKENS = [
    *(b"data", b"data:", b"data: ", b"event: ", b"event:", b"id: ", b"id", b"retry:", b":", b" ", b"x", b"12"),
    *(b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"\0", b"\xc3\xa9", BOM, b"\xef", b"\xbb"),
    *(b"data: {}\n\n", b"data: {}\r\n\r\n", b"event: x\ndata: {}\n\n", b": c\n\n", b"\xe2\x80\xa8"),
]
streams = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join)
cut_streams = streams.flatmap(
    lambda stream: st.tuples(st.just(stream), st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
)


@any_example
@given(cut_streams)
def test_any_cut_of_any_stream_gives_what_the_reference_gives(cut_stream: tuple[bytes, list[int]]) -> None:
    stream, cuts = cut_stream
    check(stream, [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])])


@any_example
@given(streams.map(lambda stream: b"data: first\n\n" + stream))
def test_any_stream_after_a_first_event_gives_what_the_reference_gives(stream: bytes) -> None:
    check(stream, [stream[:13], stream[13:]])
    check(stream, [stream[i : i + 1] for i in range(len(stream))])


@pytest.mark.parametrize(
    "block",
    [
        *(b"data: {}\n\n", b"data: a\n\ndata: b\n\n", b"data: a\ndata: b\n\ndata: c\n\n", b"data: a\n\n\ndata: b\n\n"),
        *(
            b"event: x\ndata: {}\n\n",
            b"event: x\nid: 3\ndata: {}\n\n",
            b"event: x\ndata: {}\nid: 3\n\n",
            b"event: x\n\n",
        ),
        *(b"event: x\ndata: 1\ndata: 2\n\n", b"event: x\n\ndata: {}\n\n", b"data: \n\n", b"data: a\nevent: x\n\n"),
        *(b"data: a\rdata: b\n\n", b"event: x\rdata: a\ndata: b\n\n", b"data: a\n: c\n\n", b"data: a\n\n: c\n\n"),
    ],
)
def test_whole_blocks_in_reads_of_their_own_give_what_the_reference_gives(block: bytes) -> None:
    check(b"data: first\n\n" + block * 3, [b"data: first\n\n", block, block, block])


def test_a_read_of_one_event_is_its_raw_and_its_wire_without_a_copy() -> None:
    parser = Parser(LIMIT)
    parser.feed(b"data: {}\n\n")
    for one in (b'data: {"a":1}\n\n', b'event: x\ndata: {"a":1}\n\n'):
        (event,) = parser.feed(one)
        assert event.raw is one
        assert event.wire is one


def test_wire_leaves_out_comments_blank_lines_and_what_dispatches_nothing() -> None:
    stream = b": hello\n\n\nid: 7\n\ndata: a\n: inside\ndata: b\n\n"
    (event,) = check(stream, [stream])
    assert event.raw == stream
    assert event.wire == b"data: a\ndata: b\n\n"


def test_a_comment_between_cr_and_lf_does_not_make_one_line_end_of_them() -> None:
    (event,) = check(b"data:1\r:c\n\n", [b"data:1\r:c\n\n"])
    assert event.wire == b"data:1\r\r\n"


def test_a_second_byte_order_mark_never_begins_the_wire() -> None:
    (event,) = check(BOM * 2 + b"data:1\ndata:2\n\n", [BOM * 2 + b"data:1\ndata:2\n\n"])
    assert event.data == b"2"
    assert event.wire == b"data:2\n\n"


def test_the_line_feed_of_a_cut_crlf_belongs_to_the_next_raw_but_no_wire() -> None:
    parser = Parser(LIMIT)
    (first,) = parser.feed(b"data: a\r\n\r")
    (second,) = parser.feed(b"\ndata: b\r\n\r\n")
    assert first.raw == b"data: a\r\n\r"
    assert second.raw == b"\ndata: b\r\n\r\n"
    assert second.wire == b"data: b\r\n\r\n"


def test_type_and_id_belong_to_their_event_only() -> None:
    events = read([b"event: a\nid: 1\ndata: x\n\ndata: y\n\nevent: b\nevent:\nid\ndata: z\n\nid: 1\0\ndata: w\n\n"])
    assert seen(events) == [(b"x", b"a", b"1"), (b"y", b"", None), (b"z", b"", b""), (b"w", b"", None)]


def test_only_a_retry_of_ascii_digits_counts() -> None:
    parser = Parser(LIMIT)
    parser.feed(b"retry:1e3\n\nretry:\n\nretry: -1\n\nretry:\xd9\xa3\n\nretry:" + b"9" * 5000 + b"\n\n")
    assert parser.retry_ms is None
    parser.feed(b"retry:10\n\n")
    assert parser.retry_ms == 10


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r", b"\r\n"])
def test_finish_gives_a_last_event_that_only_lacks_its_blank_line(tail: bytes) -> None:
    parser = Parser(LIMIT)
    assert parser.feed(b"data: a\n\ndata: [DONE]" + tail)[0].data == b"a"
    assert parser.unfinished
    last = parser.finish()
    assert last is not None
    assert last.data == b"[DONE]"
    assert reference(last.wire) == ([(b"[DONE]", b"", None)], False)


@pytest.mark.parametrize("rest", [b"", b": bye", b": bye\n", b"\n", b"event: ping\n", b"\xef\xbb"])
def test_finish_gives_nothing_where_no_data_is_left(rest: bytes) -> None:
    parser = Parser(LIMIT)
    parser.feed(rest)
    assert parser.finish() is None


def test_an_empty_read_changes_nothing() -> None:
    assert seen(read([b"", b"data: a\r", b"", b"\n\r", b"", b"\ndata: b\n\n", b""])) == [
        (b"a", b"", None),
        (b"b", b"", None),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_of_the_limit_passes_and_one_byte_more_is_refused(end: bytes, size: int) -> None:
    event = b"data: " + b"x" * 50 + end + end
    stream = b"data: a" + end + end + event
    reads = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert len(read(reads, Parser(len(event)))) == 2
    with pytest.raises(EventTooLarge) as refused:
        read(reads, Parser(len(event) - 2))
    assert refused.value.limit_bytes == len(event) - 2


@pytest.mark.parametrize("endless", [b"x", b"data: x\n", b": ping\n\n", b"\r\n", b"event: ping\n\n"])
def test_input_that_never_dispatches_is_refused_at_the_limit(endless: bytes) -> None:
    parser = Parser(1000)
    for _ in range(1000 // len(endless)):
        assert parser.feed(endless) == []
    with pytest.raises(EventTooLarge):
        parser.feed(endless)


def test_events_before_one_that_is_too_large_are_not_lost() -> None:
    parser = Parser(100)
    parser.feed(b"data: a\n\n")
    with pytest.raises(EventTooLarge) as refused:
        parser.feed(b"data: b\n\nevent: c\ndata: d\n\ndata: " + b"x" * 200 + b"\n\n")
    assert seen(refused.value.events) == [(b"b", b"", None), (b"d", b"c", None)]


@pytest.mark.parametrize("line", [b"data: ", b"event: x\ndata: "])
def test_an_event_in_a_read_of_its_own_is_refused_over_the_limit(line: bytes) -> None:
    parser = Parser(100)
    parser.feed(b"data: a\n\n")
    exact = line + b"x" * (98 - len(line)) + b"\n\n"
    assert len(parser.feed(exact)) == 1
    with pytest.raises(EventTooLarge):
        parser.feed(b"".join([exact[:-2], b"x\n\n"]))


def test_ten_megabytes_in_small_reads_take_linear_time_and_little_memory() -> None:
    reads = [TEN_MEGABYTES[i : i + 1024] for i in range(0, len(TEN_MEGABYTES), 1024)]
    started = time.process_time()
    events = read(reads)
    assert time.process_time() - started < 5  # some 0.05; looking at held bytes again for each read takes a minute
    assert [len(event.data) for event in events] == [43, 10_000_038, 6]
    assert b"".join(event.raw for event in events) == TEN_MEGABYTES

    del events
    tracemalloc.start()
    try:
        events = read(reads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(events) == 3
    assert peak < 4 * 10_000_000


def test_encode_gives_what_the_parser_reads_back() -> None:
    assert encode(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert encode(b"{}", b"error", b"7") == b"id: 7\nevent: error\ndata: {}\n\n"
    assert encode(b"") == b"data: \n\n"


@any_example
@given(st.binary(max_size=60), st.sampled_from([b"", b"error", b" padded"]), st.sampled_from([None, b"", b"42", b" 1"]))
def test_encoded_data_comes_back_with_its_line_ends_as_lf(data: bytes, kind: bytes, event_id: bytes | None) -> None:
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert seen(read([encode(data, kind, event_id)])) == [(lines, kind, event_id)]


@pytest.mark.parametrize("bad", [b"a\nb", b"a\rb", b"a\0b"])
def test_encode_refuses_a_type_or_id_that_is_not_one_line(bad: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        encode(b"{}", type=bad)
    with pytest.raises(ValueError, match="one line"):
        encode(b"{}", id=bad)
