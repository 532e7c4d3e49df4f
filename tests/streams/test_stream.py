"""A stream: who hears what, who is paused when, and that it ends once."""

from __future__ import annotations

import pytest

from proxy.errors import GatewayError, InternalError, Unavailable, UpstreamTruncated
from proxy.streams.stream import Stream
from proxy.wire.sse import Event, Parser


def events(*texts: str) -> list[Event]:
    return Parser(1000).feed(b"".join(b"data: %b\n\n" % text.encode() for text in texts))


class Tap:
    """A source that writes down what it is told."""

    def __init__(self, stream: Stream) -> None:
        self.told: list[str | GatewayError] = []
        stream.flow_from(self)

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def interrupt(self, error: GatewayError) -> None:
        self.told.append(error)

    def close(self) -> None:
        self.told.append("close")


class Reader:
    """A listener that writes down what it hears, and says it is full while `full`."""

    def __init__(self, *, full: bool = False) -> None:
        self.heard: list[str] = []
        self.ends: list[GatewayError | None] = []
        self.full = full

    def write(self, events: list[Event]) -> bool:
        self.heard.append(" ".join(event.data.decode() for event in events))
        return self.full

    def end(self, error: GatewayError | None) -> None:
        self.ends.append(error)


class Quitter(Reader):
    """Cancels the stream from within its first `write`."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(full=True)
        self._stream = stream

    def write(self, events: list[Event]) -> bool:
        full = super().write(events)
        self._stream.cancel()
        return full


def test_events_and_the_batches_they_came_in_are_counted() -> None:
    stream = Stream()
    stream.publish(events("a", "b"))
    stream.attach(Reader())
    stream.publish(events("c"))
    assert (stream.events, stream.batches) == (3, 2)


def test_a_listener_gets_each_batch_as_it_comes() -> None:
    stream, reader = Stream(), Reader()
    source = Tap(stream)
    stream.attach(reader)
    stream.publish(events("a", "b"))
    stream.publish(events("c"))
    assert reader.heard == ["a b", "c"]
    assert stream.events == 3
    assert source.told == []


def test_what_comes_before_a_listener_is_kept_for_it() -> None:
    stream, reader = Stream(), Reader()
    Tap(stream)
    stream.publish(events("a"))
    stream.publish(events("b", "c"))
    stream.attach(reader)
    assert reader.heard == ["a b c"]
    stream.publish(events("d"))
    assert reader.heard == ["a b c", "d"]
    assert stream.events == 4


def test_the_second_unheard_batch_pauses_the_source_and_a_listener_resumes_it() -> None:
    stream = Stream()
    source = Tap(stream)
    stream.publish(events("a"))
    assert source.told == []
    stream.publish(events("b"))
    assert source.told == ["pause"]
    stream.attach(Reader())
    assert source.told == ["pause", "resume"]


def test_a_full_listener_pauses_the_source_once_until_it_has_drained() -> None:
    stream, reader = Stream(), Reader(full=True)
    source = Tap(stream)
    stream.attach(reader)
    stream.publish(events("a"))
    stream.publish(events("b"))  # was under way already
    assert source.told == ["pause"]
    stream.drained()
    stream.drained()
    assert source.told == ["pause", "resume"]
    stream.publish(events("c"))
    assert source.told == ["pause", "resume", "pause"]


def test_a_listener_that_is_full_of_what_was_kept_pauses_the_source() -> None:
    stream, reader = Stream(), Reader(full=True)
    source = Tap(stream)
    stream.publish(events("a"))
    stream.attach(reader)
    assert source.told == ["pause"]
    stream.drained()
    assert source.told == ["pause", "resume"]


def test_a_source_that_was_paused_stays_so_while_what_was_kept_fills_the_listener() -> None:
    stream = Stream()
    source = Tap(stream)
    stream.publish(events("a"))
    stream.publish(events("b"))
    stream.attach(Reader(full=True))
    assert source.told == ["pause"]


def test_a_stream_without_kept_events_resumes_nothing() -> None:
    stream = Stream()
    source = Tap(stream)
    stream.attach(Reader())
    stream.drained()
    assert source.told == []


@pytest.mark.parametrize("error", [None, UpstreamTruncated("cut")])
def test_the_end_is_told_once(error: GatewayError | None) -> None:
    stream, reader = Stream(), Reader()
    stream.attach(reader)
    stream.end(error)
    stream.end(UpstreamTruncated("again"))
    stream.end()
    assert reader.ends == [error]
    assert stream.ended
    assert stream.error is error


@pytest.mark.parametrize("error", [None, UpstreamTruncated("cut")])
def test_a_late_listener_gets_what_was_kept_and_then_the_end(error: GatewayError | None) -> None:
    stream, reader = Stream(), Reader(full=True)
    Tap(stream)
    stream.publish(events("a"))
    stream.end(error)
    stream.attach(reader)
    assert reader.heard == ["a"]
    assert reader.ends == [error]


def test_a_drained_listener_of_an_ended_stream_disturbs_nobody() -> None:
    stream, reader = Stream(), Reader(full=True)
    source = Tap(stream)
    stream.attach(reader)
    stream.publish(events("a"))
    stream.end()
    stream.drained()
    assert source.told == ["pause"]
    assert reader.ends == [None]


def test_cancelling_closes_the_source_and_the_listener_hears_no_more() -> None:
    stream, reader = Stream(), Reader()
    source = Tap(stream)
    stream.attach(reader)
    stream.cancel()
    stream.cancel()
    stream.end(UpstreamTruncated("cut"))
    assert source.told == ["close"]
    assert reader.ends == []
    assert stream.error is None


def test_a_listener_may_cancel_from_within_write() -> None:
    stream = Stream()
    source = Tap(stream)
    reader = Quitter(stream)
    stream.attach(reader)
    stream.publish(events("a"))
    assert source.told == ["close"]
    assert (reader.heard, reader.ends) == (["a"], [])


@pytest.mark.parametrize("ended", [False, True])
def test_a_listener_may_cancel_from_within_its_first_write_of_what_was_kept(ended: bool) -> None:
    stream = Stream()
    source = Tap(stream)
    stream.publish(events("a"))
    if ended:
        stream.end()
    reader = Quitter(stream)
    stream.attach(reader)
    assert source.told == ([] if ended else ["close"])
    assert (reader.heard, reader.ends) == (["a"], [])


def test_an_interrupt_ends_the_stream_and_its_source() -> None:
    stream, reader = Stream(), Reader()
    source = Tap(stream)
    stream.attach(reader)
    error = Unavailable("shutting down", code="draining")
    stream.interrupt(error)
    assert source.told == [error]
    assert reader.ends == [error]
    assert stream.error is error


def test_an_interrupt_of_an_ended_stream_changes_nothing() -> None:
    stream, reader = Stream(), Reader()
    source = Tap(stream)
    stream.attach(reader)
    stream.end()
    stream.interrupt(Unavailable("shutting down"))
    assert source.told == []
    assert reader.ends == [None]


def test_nothing_can_flow_into_a_stream_that_was_interrupted_before() -> None:
    stream = Stream()
    error = Unavailable("shutting down")
    stream.interrupt(error)
    with pytest.raises(Unavailable) as raised:
        Tap(stream)
    assert raised.value is error


def test_nothing_can_flow_into_a_stream_that_was_cancelled() -> None:
    stream = Stream()
    stream.cancel()
    with pytest.raises(InternalError, match="has ended"):
        Tap(stream)


def test_another_source_takes_over_before_anything_was_published() -> None:
    stream = Stream()
    first, second = Tap(stream), Tap(stream)
    stream.cancel()
    assert (first.told, second.told) == ([], ["close"])
