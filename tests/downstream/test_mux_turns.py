"""Requests that outlive their connection: resumed, taken over, and stopped when nobody comes back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.mux import Frame, content_of, mux
from tests.support.passing_time import PATIENCE_S, alone, pass_time, store_of
from tests.support.raw_client import chat
from tests.support.served import Served, one_route, served
from tests.support.upstream import (
    answer,
    answering,
    scripted_upstream,
)
from tests.support.word_by_word import KEYS, begun, world

if TYPE_CHECKING:
    from pathlib import Path


def numbered(frames: list[Frame]) -> list[str]:
    return [f"{frame.get('seq', '-')}:{frame['type']}" for frame in frames]


async def gone(gateway: Served, path: str = "/v1/ws") -> None:
    """Until the gateway has seen a socket leave."""
    async with asyncio.timeout(PATIENCE_S):
        while path not in [record.path for record in gateway.records]:
            await asyncio.sleep(0.001)


async def test_a_lost_socket_is_resumed_on_another_without_a_gap_or_a_double(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with mux(gateway) as first:
            stream = await begun(model, first, "a b c")
            before = [text for text in first.heard if '"chunk"' in text]
            first.socket.transport.abort()
        await gone(gateway)
        model.say("d e")
        async with mux(gateway) as second:
            await second.say("init", v=1, resume=[{"rid": "r7", "stream": stream, "after": 2}])
            ready, resumed = await second.until("resumed")
            third = await second.hear()
            model.stop()
            rest = await second.ended("r7")
        record = await gateway.record(1)
    assert ready["type"] == "ready"
    assert (resumed["rid"], resumed["stream"], resumed["from"], resumed["live"]) == ("r7", stream, 3, True)
    assert third["seq"] == 3
    assert next(text for text in second.heard if '"seq":3}' in text) == before[2].replace('"rid":"r1"', '"rid":"r7"')
    assert content_of([third, *rest]) == ["c", "d", "e"]
    assert [frame["seq"] for frame in rest] == [4, 5, 6, 7]
    assert {frame["data"]["stage_id"] for frame in rest} == {"r1"}
    assert (record.path, record.end_state) == ("/v1/chat/completions", EndState.COMPLETED)


async def test_an_ended_stream_is_replayed_byte_for_byte_with_its_end(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with mux(gateway) as client:
            stream = await begun(model, client, "a b")
            model.stop()
            await client.until("done")
            live = client.heard[2:]
            await client.say("resume", rid="r1", stream=stream)
            resumed, *_ = await client.until("done")
            assert client.heard[-len(live) :] == live
            await client.say("resume", rid="r1", stream=stream, after=3)
            again = await client.until("done")
            await client.say("resume", rid="r1", stream=stream, after=4)
            nothing = await client.hear()
            assert await client.is_silent()
            await client.say("resume", rid="r1", stream=stream, after=4)  # the rid is free
            assert (await client.hear())["type"] == "resumed"
    assert (resumed["from"], resumed["head"], resumed["live"]) == (1, 4, False)
    assert numbered(again) == ["-:resumed", "4:done"]
    assert (nothing["type"], nothing["from"], nothing["head"]) == ("resumed", 5, 4)


async def test_a_result_can_be_had_again(tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(answer(200, b'{"choices":[]}'))) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        mux(gateway) as client,
    ):
        await client.start(body={**chat(), "stream": False}, resumable=True)
        frames = await client.until("done")
        await client.say("resume", rid="r1", stream=frames[1]["stream"])
        assert [frame["type"] for frame in await client.until("done")] == ["resumed", "result", "done"]
        assert client.heard[-2:] == client.heard[2:4]


async def test_one_that_is_not_resumable_has_no_id_and_is_cancelled_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), mux(gateway) as client:
        await client.start()
        model.say("a")
        frames = await client.until("chat_completion_chunk")
        client.socket.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
    assert "stream" not in frames[1]


async def test_nobody_who_comes_back_in_time_is_a_cancel(tmp_path: Path) -> None:
    async with world(tmp_path, "{detach: 60s}") as (model, gateway):
        async with mux(gateway) as client:
            stream = await begun(model, client, "a")
            client.socket.transport.abort()
        await gone(gateway)
        pass_time(gateway, 30)
        assert len(store_of(gateway).live()) == 1
        pass_time(gateway, 60)
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        record = await gateway.record(1)
        async with mux(gateway) as client:
            await client.say("resume", rid="r1", stream=stream, after=1)
            _, resumed, cancelled = await client.until("cancel")
    assert (resumed["live"], cancelled["data"]["reason"], cancelled["seq"]) == (False, "detached", 2)
    assert (record.path, record.end_state) == ("/v1/chat/completions", EndState.CLIENT_CLOSED)


async def test_one_who_came_back_in_time_keeps_it(tmp_path: Path) -> None:
    async with world(tmp_path, "{detach: 60s}") as (model, gateway):
        async with mux(gateway) as first:
            stream = await begun(model, first, "a")
            first.socket.transport.abort()
        await gone(gateway)
        async with mux(gateway) as second:
            await second.say("resume", rid="r1", stream=stream, after=1)
            await second.until("resumed")
            pass_time(gateway, 3600)
            model.say("b")
            model.stop()
            assert content_of(await second.ended()) == ["b"]


@pytest.mark.parametrize(("keep", "detach", "after_s", "stopped"), [("2m", "1m", 90, False), ("10s", "1m", 30, True)])
async def test_where_the_route_says_for_how_long_that_counts(
    keep: str, detach: str, after_s: float, stopped: bool, tmp_path: Path
) -> None:
    route = (f"on_disconnect: {{keep: {keep}}}",)
    async with world(tmp_path, f"{{detach: {detach}}}", route=route) as (model, gateway):
        async with mux(gateway) as client:
            stream = await begun(model, client, "a")
            client.socket.transport.abort()
        await alone(gateway)
        pass_time(gateway, after_s)
        if stopped:
            async with asyncio.timeout(PATIENCE_S):
                await model.left.wait()
        async with mux(gateway) as client:
            await client.say("resume", rid="r1", stream=stream, after=1)
            _, resumed = await client.until("resumed")
    assert resumed["live"] is not stopped


async def test_one_that_is_not_resumable_goes_with_its_socket_whatever_the_route_says(tmp_path: Path) -> None:
    async with world(tmp_path, route=("on_disconnect: {keep: 1h}",)) as (model, gateway), mux(gateway) as client:
        await client.start()
        model.say("a")
        frames = await client.until("chat_completion_chunk")
        client.socket.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        await gateway.record(1)
    assert "stream" not in frames[1]
    assert {record.end_state for record in gateway.records} == {EndState.CLIENT_CLOSED}


async def test_a_request_that_was_not_accepted_yet_goes_with_its_socket(tmp_path: Path) -> None:
    async with world(tmp_path) as (_, gateway), mux(gateway) as client:
        await client.start(resumable=True)
        await client.until("ready")
        client.socket.transport.abort()
        await gateway.record(1)
    assert {record.end_state for record in gateway.records} == {EndState.CLIENT_CLOSED}


async def test_after_its_time_an_ended_stream_is_not_found(tmp_path: Path) -> None:
    async with world(tmp_path, "{replay: 60s}") as (model, gateway), mux(gateway) as client:
        stream = await begun(model, client, "a")
        model.stop()
        await client.until("done")
        await gateway.record()
        pass_time(gateway, 30)
        await client.say("resume", rid="r1", stream=stream)
        await client.until("done")
        pass_time(gateway, 60)
        await client.say("resume", rid="r1", stream=stream)
        [error] = await client.until("error")
    assert (error["status"], error["data"]["error"]["code"], error["rid"]) == (404, "stream_not_found", "r1")
    assert "seq" not in error


async def test_a_second_attach_takes_over(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), mux(gateway) as first, mux(gateway) as second:
        stream = await begun(model, first, "a b")
        await second.say("resume", rid="r1", stream=stream, after=0)
        frames = await second.until("chat_completion_chunk")
        [taken] = await first.until("error")
        model.say("c")
        model.stop()
        rest = await second.ended()
        assert await first.is_silent()
        await first.say("cancel", rid="r1")
        await first.start("r1", path="/nope")  # its rid is free
        assert (await first.hear())["status"] == 404
    assert (taken["status"], taken["data"]["error"]["code"], taken["rid"]) == (409, "taken_over", "r1")
    assert "seq" not in taken
    assert content_of([*frames, *rest]) == ["a", "b", "c"]


async def test_taking_over_within_one_socket(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), mux(gateway) as client:
        stream = await begun(model, client, "a")
        await client.say("resume", rid="r2", stream=stream, after=1)
        resumed, taken = await client.until("error")
        model.say("b")
        chunk_frame = await client.hear()
        await client.say("cancel", rid="r2")
        cancelled = await client.hear()
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
    assert (resumed["type"], resumed["rid"]) == ("resumed", "r2")
    assert (taken["data"]["error"]["code"], taken["rid"]) == ("taken_over", "r1")
    assert (chunk_frame["rid"], chunk_frame["seq"]) == ("r2", 2)
    assert (cancelled["type"], cancelled["rid"], cancelled["seq"]) == ("cancel", "r2", 3)


@pytest.mark.parametrize("key", ["sk-0th3r", "sk-w3b"])
async def test_a_stream_is_its_keys(key: str, tmp_path: Path) -> None:
    async with world(tmp_path, more=KEYS) as (model, gateway):
        async with (
            mux(gateway, additional_headers={"Authorization": "Bearer sk-w3b"}) as first,
            mux(gateway) as second,
        ):
            stream = await begun(model, first, "a")
            await second.say("init", v=1, auth={"bearer": key}, resume=[{"rid": "r1", "stream": stream, "after": 0}])
            _, answered = await second.until("error", "resumed")
    if key == "sk-w3b":
        assert answered["type"] == "resumed"
    else:
        assert (answered["status"], answered["data"]["error"]["code"]) == (404, "stream_not_found")


async def test_what_has_fallen_out_of_the_buffer_is_a_gap(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), mux(gateway) as client:
        store = gateway.gateway._streams.store
        store.limits = replace(store.limits, frames=2)
        stream = await begun(model, client, "a b c d")
        await client.say("resume", rid="r2", stream=stream, after=1)
        [gap] = await client.until("error")
        await client.say("resume", rid="r2", stream=stream, after=gap["oldest"] - 1)
        resumed, *_ = await client.until("error")
        frames = [await client.hear(), await client.hear()]
        await client.say("resume", rid="r3", stream=stream, after=9)
        [ahead] = await client.until("error")
    assert (gap["status"], gap["data"]["error"]["code"], gap["oldest"], gap["rid"]) == (410, "replay_gap", 3, "r2")
    assert "seq" not in gap
    assert resumed["from"] == 3
    assert content_of(frames) == ["c", "d"]
    assert (ahead["status"], ahead["rid"]) == (400, "r3")


async def test_a_gateway_that_was_restarted_does_not_know_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway), mux(gateway) as client:
        stream = await begun(model, client, "a")
    async with world(tmp_path) as (_, restarted), mux(restarted) as client:
        await client.say("init", v=1, resume=[{"rid": "r1", "stream": stream, "after": 1}])
        ready, error = await client.until("error")
        assert (ready["type"], error["status"], error["rid"]) == ("ready", 404, "r1")
        assert error["data"]["error"]["code"] == "stream_not_found"
        await client.start()  # the rid is free
        assert await client.is_silent()


async def test_two_that_resume_at_once_leave_one(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with mux(gateway) as client:
            stream = await begun(model, client, "a b")
            client.socket.transport.abort()
        await gone(gateway)
        async with mux(gateway) as one, mux(gateway) as two:
            asked = {"stream": stream, "after": 0}
            await asyncio.gather(one.say("resume", rid="r1", **asked), two.say("resume", rid="r1", **asked))
            await asyncio.gather(one.until("chat_completion_chunk"), two.until("chat_completion_chunk"))
            model.say("c")
            model.stop()
            ends = await asyncio.gather(one.ended(), two.ended())
    codes = sorted(str(frames[-1]["data"].get("error", {}).get("code")) for frames in ends)
    assert codes == ["None", "taken_over"]
    [winner] = [frames for frames in ends if frames[-1]["type"] == "done"]
    assert winner[-1]["seq"] == 5


async def test_one_that_is_resumed_twice_in_one_init_is_the_second_ones(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with mux(gateway) as client:
            stream = await begun(model, client, "a")
            client.socket.transport.abort()
        await gone(gateway)
        async with mux(gateway) as client:
            both = [{"rid": rid, "stream": stream, "after": 1} for rid in ("x", "y")]
            await client.say("init", v=1, resume=both)
            frames = await client.until("error")
            model.stop()
            rest = await client.ended("y")
    assert [(frame["type"], frame.get("rid")) for frame in frames[1:]] == [
        ("resumed", "x"),
        ("resumed", "y"),
        ("error", "x"),
    ]
    assert numbered(rest) == ["2:chat_completion_chunk", "3:done"]


async def test_a_cancel_reaches_a_resumed_stream(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with mux(gateway) as first:
            stream = await begun(model, first, "a")
            first.socket.transport.abort()
        await gone(gateway)
        async with mux(gateway) as second:
            await second.say("resume", rid="r2", stream=stream, after=1)
            await second.until("resumed")
            await second.say("cancel", rid="r2")
            cancelled = await second.hear()
            async with asyncio.timeout(PATIENCE_S):
                await model.left.wait()
    assert (cancelled["type"], cancelled["seq"], cancelled["data"]["reason"]) == ("cancel", 2, "client")


async def test_resumed_streams_count_among_the_live_ones(tmp_path: Path) -> None:
    async with world(tmp_path, "{streams: 1}") as (model, gateway), mux(gateway) as first, mux(gateway) as second:
        stream = await begun(model, first, "a")
        await second.start("r1")
        await second.until("ready")
        await second.say("resume", rid="r2", stream=stream, after=1)
        [error] = await second.until("error")
        await first.say("resume", rid="r1", stream=stream)
        [in_use] = await first.until("error")
    assert (error["status"], error["data"]["error"]["code"], error["rid"]) == (429, "too_many_streams", "r2")
    assert (in_use["data"]["error"]["code"], in_use["about"]) == ("rid_in_use", "r1")


async def test_nothing_is_left_when_the_gateway_stops(tmp_path: Path) -> None:
    async with world(tmp_path) as (model, gateway):
        async with mux(gateway) as client:
            await begun(model, client, "a")
            client.socket.transport.abort()
        await gone(gateway)
        await gateway.gateway.stop()
        async with asyncio.timeout(PATIENCE_S):
            await model.left.wait()
        assert not gateway.gateway._turns._tasks
    assert json.dumps([record.end_state for record in gateway.records]) == '["client_closed", "client_closed"]'
