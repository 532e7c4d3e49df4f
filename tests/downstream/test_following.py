"""One client that follows a kept stream: at its own pace, to the end, or until somebody takes over."""

from __future__ import annotations

import pytest

from proxy.downstream.following import QUEUE_BYTES, Following
from proxy.errors import GatewayError, InvalidRequest
from proxy.streams.backlog import Keeping
from proxy.streams.numbered import NumberedStream, ReplayGap
from proxy.streams.replayed import Replayed
from proxy.streams.stream import Stream
from proxy.wire.mux_frames import Ending, Form
from proxy.wire.sse import Event


class Shelf:
    def hold(self, more_bytes: int) -> bool:
        return False


class Source:
    def __init__(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def interrupt(self, error: GatewayError) -> None:
        raise AssertionError(error)

    def close(self) -> None:
        raise AssertionError("nobody closes it")


class Client:
    """Hears what goes out; `full` is what it says after each batch."""

    def __init__(self, following: Following) -> None:
        self.full = False
        self.heard = b""
        self.ends: list[GatewayError | None] = []
        following.stream.attach(self)

    def write(self, events: list[Event]) -> bool:
        self.heard += b"".join(event.wire for event in events)
        return self.full

    def end(self, error: GatewayError | None) -> None:
        self.ends.append(error)


class World:
    """An upstream's stream that is kept, on its endpoint."""

    def __init__(self, path: str = "/v1/chat/completions", frames: int = 1000) -> None:
        self.path = path
        self.form = Form.CHUNKS if path.endswith("completions") else Form.EVENTS
        self.upstream, self.source = Stream(), Source()
        self.upstream.flow_from(self.source)
        self.numbered = NumberedStream(
            screen=lambda events: events,
            known=True,
            keeping=Keeping(frames, 1 << 30, Shelf()),
            conclude=lambda error: Ending.done(None) if error is None else Ending.failed(error),
            on_malformed=lambda: None,
        )
        self.numbered.listen(self.upstream)

    def say(self, *data: bytes) -> None:
        self.upstream.publish([Event(each, each, each) for each in data])

    def follow(self, after: int = 0) -> tuple[Following, Client]:
        following = Following(Replayed(self.path, self.form, "s_1"))
        client = Client(following)
        following.follow(self.numbered, after)
        return following, client


A, B, C = b'{"a":1}', b'{"b":2}', b'{"c":3}'


def wire(*numbered: tuple[int, bytes]) -> bytes:
    return b"".join(b"id: %d\ndata: %b\n\n" % each for each in numbered)


def test_what_was_and_what_comes_goes_out_in_order_with_the_end() -> None:
    world = World()
    world.say(A)
    _, client = world.follow()
    world.say(B, C)
    world.upstream.end()
    assert client.heard == wire((1, A), (2, B), (3, C), (4, b"[DONE]"))
    assert client.ends == [None]


def test_an_ended_stream_goes_out_at_once() -> None:
    world = World()
    world.say(A, B)
    world.upstream.end()
    _, client = world.follow(after=1)
    assert client.heard == wire((2, B), (3, b"[DONE]"))
    assert client.ends == [None]


def test_a_full_client_waits_and_then_gets_all_of_it() -> None:
    world = World()
    following, client = world.follow()
    client.full = True
    world.say(A)
    world.say(B)
    world.upstream.end()
    assert client.heard == wire((1, A))
    client.full = False
    following.stream.drained()
    assert client.heard == wire((1, A), (2, B), (3, b"[DONE]"))
    assert client.ends == [None]


def test_a_client_that_stays_full_pauses_the_upstream_until_it_has_read() -> None:
    world = World()
    following, client = world.follow()
    client.full = True
    large = b'{"a":"' + b"x" * (QUEUE_BYTES // 4) + b'"}'
    world.say(large)
    paused_after = 0
    while not world.source.paused:
        world.say(large)
        paused_after += 1
    assert paused_after == 4
    client.full = False
    following.stream.drained()
    assert not world.source.paused
    assert client.heard == wire(*((number, large) for number in range(1, 6)))


def test_who_is_taken_over_hears_so_and_nothing_more() -> None:
    world = World()
    first_following, first = world.follow()
    world.say(A)
    second_following, second = world.follow(after=1)
    world.say(B)
    assert b'"code":"taken_over"' in first.heard
    assert first.heard.startswith(wire((1, A)))
    assert first.ends == [None]
    assert second.heard == wire((2, B))
    assert (first_following.leave(), second_following.leave()) == (False, True)


def test_one_who_left_hears_nothing_and_holds_nothing_up() -> None:
    world = World()
    following, client = world.follow()
    client.full = True
    world.say(A)
    world.say(b'{"a":"' + b"x" * QUEUE_BYTES + b'"}')
    assert world.source.paused
    assert following.leave()
    assert not following.leave()
    assert not world.source.paused
    world.say(B)
    world.upstream.end()
    assert client.heard == wire((1, A))
    assert client.ends == []


def test_where_nothing_can_be_said_the_body_is_cut() -> None:
    world = World("/v1/other")
    _, client = world.follow()
    world.say(A)
    world.upstream.end(InvalidRequest("gone"))
    assert client.heard == wire((1, A))
    assert [type(error).__name__ for error in client.ends] == ["UpstreamTruncated"]


@pytest.mark.parametrize(("after", "error"), [(0, ReplayGap), (9, InvalidRequest)])
def test_a_refused_one_takes_nothing_over(after: int, error: type[GatewayError]) -> None:
    world = World(frames=1)
    _, client = world.follow()
    world.say(A, B)
    with pytest.raises(error):
        world.follow(after)
    world.say(C)
    assert client.heard == wire((1, A), (2, B), (3, C))
