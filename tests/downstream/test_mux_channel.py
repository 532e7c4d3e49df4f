"""One `rid` of a session within its window: what is sent, what is held back, and what an `ack` lets through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.mux import content_of, mux
from tests.support.served import one_route, served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [f"w{number}" for number in range(10)]


def said(one_by_one: bool) -> list[bytes]:
    events = [*map(content, WORDS), STOP]
    return [chunk(each) for each in events] if one_by_one else [chunk(b"".join(events))]


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["together", "one by one"])
async def test_no_more_than_a_window_is_unacknowledged(one_by_one: bool, resumable: bool, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, *said(one_by_one), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.say("init", v=1, features=["ack"])
        await client.start(window=3, resumable=resumable)
        frames = await client.until("chat_completion_chunk")
        frames += [await client.hear(), await client.hear()]
        assert content_of(frames) == WORDS[:3]
        assert await client.is_silent()
        await client.say("ack", rid="r1", seq=2)
        frames = [await client.hear(), await client.hear()]
        assert [frame["seq"] for frame in frames] == [4, 5]
        assert await client.is_silent()
        for seq in (1, 2, 999, 0):  # old, known, not sent yet
            await client.say("ack", rid="r1", seq=seq)
        await client.say("ack", rid="r2", seq=5)
        assert await client.is_silent()
        seq = 5
        while frames[-1]["type"] != "done":
            await client.say("ack", rid="r1", seq=seq)
            frames.append(await client.hear())
            seq += 1
        assert [frame["seq"] for frame in frames] == list(range(4, 13))


async def test_the_end_waits_for_the_window_too(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(content("a")), chunk(STOP), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.say("init", v=1, features=["ack"])
        await client.start(window=2)
        await client.until("chat_completion_chunk")
        await client.hear()
        assert await client.is_silent()
        await client.say("ack", rid="r1", seq=1)
        assert (await client.hear())["type"] == "done"


async def test_a_cancel_is_answered_though_the_window_is_full_of_what_waits(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, *said(False))
        await peer.closed()

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.say("init", v=1, features=["ack"])
        await client.start(window=4)
        await client.until("chat_completion_chunk")
        for _ in range(3):
            await client.hear()
        await client.say("cancel", rid="r1")
        await client.say("ack", rid="r1", seq=4)
        cancelled = await client.hear()
    assert (cancelled["type"], cancelled["seq"]) == ("cancel", 5)


async def test_a_window_counts_only_for_clients_that_acknowledge(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, *said(True), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(window=1)
        await client.say("ack", rid="r1", seq=0)
        assert content_of(await client.ended()) == WORDS
