"""A stage's stream: one numbering over several completions, one end, and who is paused or stopped by whom."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.errors import (
    GatewayError,
    InvalidRequest,
    Unavailable,
    UpstreamError,
    UpstreamIdle,
    UpstreamInvalid,
    UpstreamTruncated,
)
from proxy.streams.stages import StageStream, sentence
from proxy.streams.stream import Stream
from proxy.wire.sse import Event, Parser
from proxy.wire.stages import CHAT_CHUNK, TOOL_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = b'data: {"n":1}\n\n'
TWO = b'data: {"n":2}\n\n'
DONE = b"data: [DONE]\n\n"
DRAINING = Unavailable("going", code="draining")


def events(data: bytes) -> list[Event]:
    return Parser(1 << 20).feed(data)


class Upstream:
    """A followed stream and its source, which writes down what it is told."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.told: list[str] = []
        self.stream.flow_from(self)

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def interrupt(self, error: GatewayError) -> None:
        self.told.append(error.code)
        self.stream.end(error)

    def close(self) -> None:
        self.told.append("close")

    def say(self, *reads: bytes) -> None:
        for read in reads:
            self.stream.publish(events(read))


class Reader:
    """A client's side: `heard` is `id event data` of every event; full while `full`."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.batches = 0
        self.ends: list[GatewayError | None] = []
        self.full = False

    def write(self, events: list[Event]) -> bool:
        self.batches += 1
        self.heard += [f"{(event.id or b'').decode()} {event.type.decode()} {event.data.decode()}" for event in events]
        return self.full

    def end(self, error: GatewayError | None) -> None:
        self.ends.append(error)


class World:
    """A stage with a reader, and a first completion that it follows; `ended` is what the owner was told."""

    def __init__(self, *, attached: bool = True) -> None:
        self.ended: list[GatewayError | None] = []
        self.gone = 0
        self.stage = StageStream("s", self._leave)
        self.reader = Reader()
        self.upstream = Upstream()
        if attached:
            self.stage.stream.attach(self.reader)
        self.stage.follow(self.upstream.stream, CHAT_CHUNK, self.ended.append)

    def _leave(self) -> None:
        self.gone += 1


@pytest.fixture
def world() -> World:
    return World()


def test_chunks_are_numbered_and_the_marker_is_not_passed_on(world: World) -> None:
    world.upstream.say(ONE + TWO, DONE)
    world.upstream.stream.end()
    world.stage.done()
    assert world.reader.heard == [
        's-chunk-0 chat_completion_chunk {"stage_id":"s","chunk":{"n":1}}',
        's-chunk-1 chat_completion_chunk {"stage_id":"s","chunk":{"n":2}}',
        's-chunk-2 done {"stage_id":"s"}',
    ]
    assert world.reader.batches == 2  # what came in one read leaves in one write
    assert (world.ended, world.reader.ends) == ([None], [None])


def test_the_numbers_go_on_through_rounds_and_summaries(world: World) -> None:
    world.upstream.say(ONE)
    world.upstream.stream.end()
    world.stage.summary(1, [{"id": "c1", "name": "clock", "is_error": False}])
    second = Upstream()
    world.stage.follow(second.stream, TOOL_CHUNK, world.ended.append)
    second.say(TWO)
    second.stream.end()
    world.stage.done()
    assert [line.split(" ", 2)[:2] for line in world.reader.heard] == [
        ["s-chunk-0", "chat_completion_chunk"],
        ["s-chunk-1", "tool_summary"],
        ["s-chunk-2", "tool_completion_chunk"],
        ["s-chunk-3", "done"],
    ]
    summary = json.loads(world.reader.heard[1].split(" ", 2)[2])["tool_summary"]
    assert summary == {"round": 1, "calls": [{"id": "c1", "name": "clock", "is_error": False}]}
    assert world.reader.heard[2].endswith('{"stage_id":"s","tool_results":{"n":2}}')


ENDS: dict[str, Callable[[StageStream], None]] = {
    "done": StageStream.done,
    "cancel": lambda stage: stage.cancel("client"),
    "error": lambda stage: stage.fail(UpstreamError("Broken.")),
}


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_a_stage_ends_once(first: str, second: str, world: World) -> None:
    world.upstream.say(ONE)
    ENDS[first](world.stage)
    ENDS[second](world.stage)
    world.stage.summary(1, [])
    assert [line.split(" ")[1] for line in world.reader.heard] == ["chat_completion_chunk", first]
    assert world.reader.ends == [None]
    assert world.stage.over
    assert (world.stage.error is not None) == (first == "error")
    assert world.stage.cancelled_for == ("client" if first == "cancel" else None)


@pytest.mark.parametrize("end", ENDS)
def test_what_is_followed_is_stopped_with_the_stage_and_nobody_is_told_that_it_ended(end: str, world: World) -> None:
    ENDS[end](world.stage)
    assert world.upstream.told == ["close"]
    world.upstream.say(ONE)
    assert len(world.reader.heard) == 1
    assert world.ended == []


def test_what_is_followed_after_the_end_is_only_stopped(world: World) -> None:
    world.upstream.stream.end()
    world.stage.cancel("client")
    late = Upstream()
    world.stage.follow(late.stream, CHAT_CHUNK, world.ended.append)
    assert late.told == ["close"]
    assert world.ended == [None]


def test_events_that_came_before_anybody_listened_are_not_lost() -> None:
    world = World(attached=False)
    world.upstream.say(ONE)
    world.upstream.stream.end()
    world.stage.done()
    world.stage.stream.attach(world.reader)
    assert [line.split(" ")[0] for line in world.reader.heard] == ["s-chunk-0", "s-chunk-1"]
    assert world.reader.ends == [None]


def test_a_stream_that_has_ended_already_is_followed_to_its_end_at_once(world: World) -> None:
    world.upstream.stream.end()
    ready = Upstream()
    ready.say(ONE)
    ready.stream.end(UpstreamTruncated("cut"))
    world.stage.follow(ready.stream, CHAT_CHUNK, world.ended.append)
    assert len(world.reader.heard) == 1
    assert [error.code if error else None for error in world.ended] == [None, "upstream_truncated"]


def test_every_event_is_shown_first_the_marker_too() -> None:
    stage, upstream, seen = StageStream("s"), Upstream(), list[bytes]()
    stage.follow(upstream.stream, CHAT_CHUNK, lambda error: None, lambda event: seen.append(event.data))
    upstream.say(ONE + TWO + DONE)
    assert seen == [b'{"n":1}', b'{"n":2}', b"[DONE]"]


# ---- errors of the upstream's ----

ERROR_EVENTS = {
    "an error object": (b'data: {"error":{"message":"Out of memory.","code":500}}\n\n', "Out of memory."),
    "an error in words": (b'data: {"error":"too long"}\n\n', "too long"),
    "an event called error": (b'event: error\ndata: {"message":"overloaded"}\n\n', "overloaded"),
    "one that says nothing": (b'data: {"error":true}\n\n', "The model server reported an error without saying which."),
}


@pytest.mark.parametrize("case", ERROR_EVENTS)
def test_an_error_event_ends_the_stage_and_is_no_chunk(case: str, world: World) -> None:
    sent, message = ERROR_EVENTS[case]
    world.upstream.say(ONE + sent + TWO, TWO)
    assert world.reader.heard[1:] == [f's-chunk-1 error {{"stage_id":"s","error":{json.dumps(message)}}}']
    assert world.reader.ends == [None]
    assert world.upstream.told == ["close"]
    [told] = world.ended
    assert isinstance(told, UpstreamError)
    assert world.stage.error is told


@pytest.mark.parametrize(
    "chunk",
    [
        b'{"error":null,"n":1}',
        b'{"error": "","n":1}',
        b'{"choices":[{"delta":{"content":"\\"error\\": no"}}]}',
        b'{"choices":[{"delta":{"content":"error"}}]}',
        b'{"choices":[{"error":{"message":"inside"}}]}',
        b' {"n":1} ',
    ],
)
def test_what_only_looks_like_an_error_is_a_chunk(chunk: bytes, world: World) -> None:
    world.upstream.say(b"data: " + chunk + b"\n\n", b"event: message\ndata: " + chunk + b"\n\n")
    assert [json.loads(line.split(" ", 2)[2])["chunk"] for line in world.reader.heard] == [json.loads(chunk)] * 2
    assert world.ended == []


@pytest.mark.parametrize(
    "chunk",
    [
        b'{"a":1},"stage_id":"forged","b":{}',
        b'{"a":1}},"event":"done","data":{"b":{}',
        b'{"a":1}{"b":2}',
        b'{"a":NaN}',
        b'{"a":\xff}',
        b'{"a":"\xff"},"b":{}',
        b"{a}",
        b"[1]",
        b"oops",
    ],
)
def test_what_is_not_one_object_is_dropped(chunk: bytes, world: World) -> None:
    world.upstream.say(b"data: " + chunk + b"\n\n" + TWO)
    assert world.reader.heard == ['s-chunk-0 chat_completion_chunk {"stage_id":"s","chunk":{"n":2}}']


def test_an_object_with_bytes_that_are_no_utf8_is_a_chunk() -> None:
    stage, upstream = StageStream("s"), Upstream()
    stage.follow(upstream.stream, CHAT_CHUNK, stage.stop_for)
    upstream.say(b'data: {"a":"\xff"}\n\n')
    assert stage.stream.events == 1


@pytest.mark.parametrize(
    ("error", "last", "failed"),
    [
        (None, 'done {"stage_id":"s"}', None),
        (DRAINING, 'cancel {"stage_id":"s"}', None),
        (
            UpstreamTruncated("the answer stopped before its end"),
            'error {"stage_id":"s","error":"The answer stopped before its end. Send the request again."}',
            "upstream_truncated",
        ),
    ],
)
def test_a_completions_end_can_be_the_stages(error: GatewayError | None, last: str, failed: str | None) -> None:
    stage, upstream, reader = StageStream("s"), Upstream(), Reader()
    stage.stream.attach(reader)
    stage.follow(upstream.stream, CHAT_CHUNK, stage.stop_for)
    upstream.stream.end(error)
    assert reader.heard == [f"s-chunk-0 {last}"]
    assert reader.ends == [None]
    assert (stage.error.code if stage.error else None) == failed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UpstreamIdle("nothing came for 60 s."), "Nothing came for 60 s. Send the request again."),
        (UpstreamInvalid("an event is too large"), "An event is too large"),
        (UpstreamError("theirs", code="upstream_error"), "theirs"),
        (UpstreamError(""), ""),
        (InvalidRequest("stage_id: Field required"), "stage_id: Field required"),
    ],
)
def test_an_error_is_a_sentence_with_what_can_be_done(error: GatewayError, said: str) -> None:
    assert sentence(error) == said


# ---- slow readers, and readers that leave ----


def test_a_slow_reader_pauses_the_upstream_until_it_has_caught_up(world: World) -> None:
    world.reader.full = True
    world.upstream.say(ONE)
    assert world.upstream.told == ["pause"]
    world.reader.full = False
    world.stage.stream.drained()
    world.upstream.say(TWO)
    assert world.upstream.told == ["pause", "resume"]
    assert len(world.reader.heard) == 2


def test_a_reader_that_a_summary_filled_pauses_the_next_round(world: World) -> None:
    world.upstream.stream.end()
    world.reader.full = True
    world.stage.summary(1, [])
    second = Upstream()
    world.stage.follow(second.stream, CHAT_CHUNK, world.ended.append)
    second.say(ONE)
    assert second.told == ["pause"]
    world.stage.stream.drained()
    assert second.told == ["pause", "resume"]


def test_until_somebody_listens_two_batches_pause_the_upstream() -> None:
    world = World(attached=False)
    world.upstream.say(ONE, TWO)
    assert world.upstream.told == ["pause"]
    world.stage.stream.attach(world.reader)
    assert world.upstream.told == ["pause", "resume"]
    assert len(world.reader.heard) == 2


def test_a_reader_that_leaves_stops_the_upstream_and_its_owner(world: World) -> None:
    world.upstream.say(ONE)
    world.stage.stream.cancel()
    assert (world.upstream.told, world.gone, world.ended) == (["close"], 1, [])
    world.stage.done()
    world.upstream.say(TWO)
    assert len(world.reader.heard) == 1
    assert world.reader.ends == []


def test_a_reader_that_leaves_after_the_end_disturbs_nobody(world: World) -> None:
    world.stage.done()
    world.stage.stream.cancel()
    assert world.gone == 0


def test_a_reader_may_leave_from_within_its_first_batch(world: World) -> None:
    def leave(events: list[Event]) -> bool:
        world.stage.stream.cancel()
        return False

    world.reader.write = leave  # type: ignore[method-assign]
    world.upstream.say(ONE + b'data: {"error":{"message":"late"}}\n\n', TWO)
    assert (world.upstream.told, world.gone, world.stage.error) == (["close"], 1, None)


def test_an_owner_may_end_the_stage_from_what_it_sees() -> None:
    stage, upstream, reader = StageStream("s"), Upstream(), Reader()
    stage.stream.attach(reader)
    stage.follow(upstream.stream, CHAT_CHUNK, lambda error: None, lambda event: stage.cancel("client"))
    upstream.say(ONE, TWO)
    assert reader.heard == ['s-chunk-0 cancel {"stage_id":"s"}']
    assert upstream.told == ["close"]


@pytest.mark.parametrize(("error", "kind"), [(DRAINING, "cancel"), (UpstreamError("Stop."), "error")])
def test_an_interrupted_stage_ends_in_words_and_its_upstream_knows_why(
    error: GatewayError, kind: str, world: World
) -> None:
    world.stage.stream.interrupt(error)
    assert world.upstream.told == [error.code]
    assert world.ended == [error]
    assert [line.split(" ")[1] for line in world.reader.heard] == [kind]
    assert world.reader.ends == [None]


def test_between_rounds_an_interruption_ends_it_too(world: World) -> None:
    world.upstream.stream.end()
    world.stage.stream.interrupt(DRAINING)
    assert world.reader.heard == ['s-chunk-0 cancel {"stage_id":"s"}']
