"""Kept streams on the event loop's clock: stopped and forgotten when their time is up, with one timer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
import uvloop

from proxy.downstream.kept_streams import KeptStreams
from proxy.errors import GatewayError, NotFound
from proxy.streams.numbered import NumberedStream
from proxy.streams.store import KeptStream, StoreLimits, StreamStore
from proxy.wire.mux_frames import Ending, Form
from tests.support.memory_line import Clock
from tests.support.passing_time import PATIENCE_S


@dataclass
class World:
    """Streams that are kept this long, and why which of them was stopped."""

    detach_s: float = 30
    replay_s: float = 30
    stopped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.streams = KeptStreams(StreamStore(StoreLimits(self.detach_s, self.replay_s)))

    def keep(self, id: str, keep_s: float | None = None) -> KeptStream:
        numbered = NumberedStream(
            screen=lambda events: events,
            known=True,
            keeping=self.streams.store.keeping(),
            conclude=_conclude,
            on_malformed=lambda: None,
        )
        kept = KeptStream(
            id, None, numbered, Form.CHUNKS, "r1", "/v1/chat/completions", lambda reason: None, keep_s, None
        )

        def stop(reason: str) -> None:
            self.stopped[id] = reason
            numbered.finish(Ending.cancelled(reason))
            self.streams.ended(kept)

        kept.cancel = stop
        self.streams.store.keep(kept)
        return kept


def _conclude(error: GatewayError | None) -> Ending:
    return Ending.done(None)


async def test_who_is_alone_for_too_long_is_stopped_and_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, world = Clock(monkeypatch), World(detach_s=30, replay_s=120)
    kept = world.keep("a")
    world.streams.detach(kept)
    await clock.advance(29.9)
    assert world.stopped == {}
    await clock.advance(0.2)
    assert world.stopped == {"a": "detached"}
    await clock.advance(119.8)
    assert world.streams.store.find("a", None) is kept
    await clock.advance(0.2)
    with pytest.raises(NotFound):
        world.streams.store.find("a", None)
    world.streams.close()


async def test_one_who_comes_back_in_time_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, world = Clock(monkeypatch), World(detach_s=30)
    kept = world.keep("a")
    world.streams.detach(kept)
    await clock.advance(29)
    world.streams.store.attached(kept)
    await clock.advance(1000)
    assert world.stopped == {}
    world.streams.detach(kept)
    await clock.advance(29.9)
    assert world.stopped == {}
    await clock.advance(0.2)
    assert world.stopped == {"a": "detached"}
    world.streams.close()


async def test_each_is_alone_for_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, world = Clock(monkeypatch), World(detach_s=30)
    for id, keep_s in (("long", 3600), ("any", None), ("short", 5), ("none", 0)):
        world.streams.detach(world.keep(id, keep_s))
    stopped = []
    for seconds in (0, 5.1, 25, 3570):
        await clock.advance(seconds)
        stopped.append(" ".join(world.stopped))
    assert stopped == ["none", "none short", "none short any", "none short any long"]
    world.streams.close()


async def test_an_earlier_deadline_is_kept_before_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, world = Clock(monkeypatch), World(detach_s=30, replay_s=5)
    world.streams.detach(world.keep("a"))
    ended = world.keep("b")
    ended.numbered.finish(Ending.done(None))
    world.streams.ended(ended)
    await clock.advance(5.1)
    assert [kept.id for kept in world.streams.store.live()] == ["a"]
    with pytest.raises(NotFound):
        world.streams.store.find("b", None)
    await clock.advance(25)
    assert world.stopped == {"a": "detached"}
    world.streams.close()


def test_what_is_due_at_once_is_done_on_the_loop_that_serves_too() -> None:
    """uvloop gives for it a handle that does not say when it is due."""

    async def two_deadlines() -> None:
        world = World(detach_s=30)
        world.streams.detach(world.keep("now", 0))
        world.streams.detach(world.keep("later"))
        async with asyncio.timeout(PATIENCE_S):
            while not world.stopped:
                await asyncio.sleep(0)
        assert world.stopped == {"now": "detached"}
        world.streams.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(two_deadlines())


async def test_closing_stops_what_lives_and_leaves_no_timer() -> None:
    world = World()
    world.keep("a")
    world.streams.detach(world.keep("b"))
    world.keep("c").numbered.finish(Ending.done(None))
    world.streams.close()
    assert world.stopped == {"a": "draining", "b": "draining"}
    assert world.streams._expiry is not None
    assert world.streams._expiry.cancelled()
