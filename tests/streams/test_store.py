"""Who may come back to a stream, until when, and what goes first when too much is kept."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from proxy.errors import GatewayError, NotFound
from proxy.streams.numbered import NumberedStream
from proxy.streams.store import STREAM_COST_BYTES, KeptStream, StoreLimits, StreamStore, new_stream_id
from proxy.streams.stream import Stream
from proxy.wire.mux_frames import Ending, Form
from proxy.wire.sse import Event

LIMITS = StoreLimits(detach_s=30, replay_s=120)


def kept_in(store: StreamStore, owner: str | None = "web", keep_s: float | None = None) -> KeptStream:
    numbered = NumberedStream(
        screen=lambda events: events,
        known=True,
        keeping=store.keeping(),
        conclude=_conclude,
        on_malformed=lambda: None,
    )
    kept = KeptStream(
        new_stream_id(),
        owner,
        numbered,
        Form.CHUNKS,
        "r1",
        "/v1/chat/completions",
        lambda reason: None,
        keep_s,
        keepalive_s=15,
    )
    store.keep(kept)
    return kept


def _conclude(error: GatewayError | None) -> Ending:
    return Ending.done(None)


def fill(kept: KeptStream, size_bytes: int) -> None:
    data = b'{"a":"' + b"x" * (size_bytes - 8) + b'"}'
    stream = Stream()
    stream.publish([Event(data, data, data)])
    kept.numbered.listen(stream)


def end(store: StreamStore, kept: KeptStream, now: float) -> None:
    kept.numbered.finish(Ending.done(None))
    store.ended(kept, now)


def is_there(store: StreamStore, kept: KeptStream) -> bool:
    try:
        return store.find(kept.id, kept.owner) is kept
    except NotFound:
        return False


@pytest.mark.parametrize("owner", ["web", None])
def test_who_started_it_finds_it(owner: str | None) -> None:
    store = StreamStore(LIMITS)
    assert is_there(store, kept_in(store, owner))


@pytest.mark.parametrize(("owner", "other"), [("web", "batch"), ("web", None), (None, "web")])
def test_for_anybody_else_it_is_not_there(owner: str | None, other: str | None) -> None:
    store = StreamStore(LIMITS)
    kept = kept_in(store, owner)
    with pytest.raises(NotFound) as refused:
        store.find(kept.id, other)
    with pytest.raises(NotFound) as unknown:
        store.find("s_none", other)
    assert (refused.value.status, refused.value.code) == (404, "stream_not_found")
    assert refused.value.message == unknown.value.message


def test_ids_are_random() -> None:
    ids = {new_stream_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {(id[:2], len(id)) for id in ids} == {("s_", 26)}


def test_alone_for_too_long_it_is_the_callers_to_cancel() -> None:
    store = StreamStore(LIMITS)
    kept = kept_in(store)
    assert store.next_deadline() is None
    store.detached(kept, 100)
    assert store.next_deadline() == 130
    assert store.expire(129.9) == []
    assert store.expire(130) == [kept]
    assert store.expire(130) == []
    assert is_there(store, kept)


def test_followed_again_in_time_it_stays() -> None:
    store = StreamStore(LIMITS)
    kept = kept_in(store)
    store.detached(kept, 100)
    store.attached(kept)
    assert store.next_deadline() is None
    assert store.expire(1000) == []


def test_after_its_end_it_is_forgotten_in_time_followed_or_not() -> None:
    store = StreamStore(LIMITS)
    kept = kept_in(store)
    store.detached(kept, 0)
    end(store, kept, 10)
    store.detached(kept, 20)
    store.attached(kept)
    assert store.next_deadline() == 130
    assert store.expire(129) == []
    assert is_there(store, kept)
    assert store.expire(130) == []
    assert not is_there(store, kept)


def test_each_has_its_own_deadline() -> None:
    store = StreamStore(LIMITS)
    first, second, third = (kept_in(store) for _ in range(3))
    for now, kept in enumerate((first, second, third)):
        store.detached(kept, now)
    store.attached(first)
    store.detached(first, 5)
    end(store, second, 5)
    assert store.expire(32) == [third]
    assert store.expire(35) == [first]
    assert store.next_deadline() == 125


def test_one_that_may_be_alone_for_longer_or_not_at_all_has_a_deadline_of_its_own() -> None:
    store = StreamStore(LIMITS)
    patient, usual, none = kept_in(store, keep_s=600), kept_in(store), kept_in(store, keep_s=0)
    for kept in (patient, usual, none):
        store.detached(kept, 100)
    assert store.next_deadline() == 100
    assert store.expire(100) == [none]
    assert store.next_deadline() == 130
    assert store.expire(599) == [usual]
    assert store.expire(700) == [patient]


def test_when_too_much_is_kept_what_ended_first_goes_first() -> None:
    store = StreamStore(StoreLimits(30, 120, all_bytes=3 * (STREAM_COST_BYTES + 10_200)))
    live, first, second = (kept_in(store) for _ in range(3))
    for kept in (live, first, second):
        fill(kept, 10_000)
    end(store, second, 1)
    end(store, first, 2)
    fill(kept_in(store), 10_000)
    assert [is_there(store, kept) for kept in (live, first, second)] == [True, True, False]


def test_where_all_live_the_one_that_goes_on_is_kept_less_of() -> None:
    store = StreamStore(StoreLimits(30, 120, all_bytes=2 * STREAM_COST_BYTES + 15_000))
    older, newer = kept_in(store), kept_in(store)
    fill(older, 10_000)
    fill(newer, 10_000)
    assert (older.numbered.oldest, newer.numbered.oldest) == (1, 2)


def test_nothing_is_left_of_what_is_forgotten() -> None:
    store = StreamStore(LIMITS)
    for _ in range(10):
        kept = kept_in(store)
        fill(kept, 1000)
        end(store, kept, 0)
    assert store._held_bytes > 10 * 1000
    store.expire(1000)
    assert (store._held_bytes, store.next_deadline()) == (0, None)


def test_five_thousand_streams_stay_under_the_cap_and_leave_nothing_behind() -> None:
    most_bytes = 8 * 1024 * 1024
    limits = StoreLimits(detach_s=30, replay_s=120, all_bytes=most_bytes)
    gc.collect()
    tracemalloc.start()
    try:
        store = StreamStore(limits)
        before = tracemalloc.get_traced_memory()[0]
        highest = 0
        for number in range(5000):
            kept = kept_in(store)
            for _ in range(20):
                fill_more(kept, 250)
            end(store, kept, now=number / 100)
            highest = max(highest, store._held_bytes)
        held = tracemalloc.get_traced_memory()[0] - before
        left = len(store._streams)
        assert store.expire(now=50 + 120) == []
        gc.collect()
        after = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 500 < left < 5000
    assert most_bytes * 0.9 < highest <= most_bytes
    assert held < most_bytes * 1.1
    assert (store._streams, store._held_bytes) == ({}, 0)
    assert after < 256 * 1024


def fill_more(kept: KeptStream, size_bytes: int) -> None:
    data = b'{"a":"' + b"x" * (size_bytes - 8) + b'"}'
    kept.numbered.write([Event(data, data, data)])
