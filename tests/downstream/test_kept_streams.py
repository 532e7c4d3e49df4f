"""Kept streams on the event loop's clock: stopped and forgotten when their time is up, with one timer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from proxy.downstream.kept_streams import KeptStreams
from proxy.errors import GatewayError, NotFound
from proxy.streams.numbered import NumberedStream
from proxy.streams.store import KeptStream, StoreLimits, StreamStore
from proxy.wire.mux_frames import Ending, Form


@dataclass
class World:
    """Streams that are kept this long, and why which of them was stopped."""

    detach_s: float = 30
    replay_s: float = 30
    stopped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.streams = KeptStreams(StreamStore(StoreLimits(self.detach_s, self.replay_s)))

    def keep(self, id: str) -> KeptStream:
        numbered = NumberedStream(
            screen=lambda events: events,
            known=True,
            keeping=self.streams.store.keeping(),
            conclude=_conclude,
            on_malformed=lambda: None,
        )
        kept = KeptStream(id, None, numbered, Form.CHUNKS, "r1", "/v1/chat/completions", lambda reason: None)

        def stop(reason: str) -> None:
            self.stopped[id] = reason
            numbered.finish(Ending.cancelled(reason))
            self.streams.ended(kept)

        kept.cancel = stop
        self.streams.store.keep(kept)
        return kept


def _conclude(error: GatewayError | None) -> Ending:
    return Ending.done(None)


async def test_who_is_alone_for_too_long_is_stopped_and_then_forgotten() -> None:
    world = World(detach_s=0.02, replay_s=0.02)
    kept = world.keep("a")
    world.streams.detach(kept)
    await asyncio.sleep(0.03)
    assert world.stopped == {"a": "detached"}
    await asyncio.sleep(0.03)
    with pytest.raises(NotFound):
        world.streams.store.find("a", None)
    world.streams.close()


async def test_an_earlier_deadline_is_kept_behind_a_later_one() -> None:
    world = World(detach_s=30, replay_s=0.02)
    world.streams.detach(world.keep("a"))
    ended = world.keep("b")
    ended.numbered.finish(Ending.done(None))
    world.streams.ended(ended)
    await asyncio.sleep(0.04)
    assert [kept.id for kept in world.streams.store.live()] == ["a"]
    with pytest.raises(NotFound):
        world.streams.store.find("b", None)
    world.streams.close()


async def test_closing_stops_what_lives_and_leaves_no_timer() -> None:
    world = World()
    world.keep("a")
    world.streams.detach(world.keep("b"))
    world.keep("c").numbered.finish(Ending.done(None))
    world.streams.close()
    assert world.stopped == {"a": "draining", "b": "draining"}
    assert world.streams._expiry is not None
    assert world.streams._expiry.cancelled()
