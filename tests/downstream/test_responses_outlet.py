"""A Responses session's writer: each event as its lane's frame, nothing in our name, a slow client's streams."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.downstream.responses_outlet import wrapped
from tests.support.raw_client import get, raw_client
from tests.support.responses import (
    ResponsesClient,
    completed,
    create,
    created,
    data_of,
    delta,
    give,
    prompt,
    responses_session,
)
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, Peer, Script, chunk, event

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = [
    b'{"type":"response.output_text.delta"},"stream_id":"b"}',
    b'{"type":"a"}{"type":"b"}',
    b"{'type':1}",
    b'{"type":"a","n":nan}',
]


def answering(*events: bytes, one_by_one: bool = False) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK_EVENTS)
            for read in events if one_by_one else [b"".join(events)]:
                await peer.send(chunk(read))
            await peer.send(LAST_CHUNK)

    return script


async def raw_frames(client: ResponsesClient) -> list[bytes]:
    frames = [await client.socket.recv(decode=False)]
    while b"response.completed" not in frames[-1]:
        frames.append(await client.socket.recv(decode=False))
    return frames


async def dropped(client: ResponsesClient) -> str:
    async with raw_client(client.gateway.port) as other:
        await other.send(get("/metrics", "Connection: close"))
        lines = (await other.rest()).decode().splitlines()
    [count] = [line.split()[-1] for line in lines if line.startswith('penstock_malformed_events_total{route="m"')]
    return count


@pytest.mark.parametrize("one_by_one", [False, True], ids=["in one read", "one by one"])
@pytest.mark.parametrize(("lane", "member"), [({}, b""), ({"stream_id": "a.1"}, b',"stream_id":"a.1"}')])
async def test_each_events_data_is_a_frame_byte_for_byte_but_for_the_lane_behind_it(
    lane: dict[str, str], member: bytes, one_by_one: bool, tmp_path: Path
) -> None:
    odd = [
        b'{ "type" : "response.x" , "n":1.50 }',
        '{"type":"response.x","t":"é\u2028🌊"}'.encode(),
        b'{"type":"keepalive"}',
    ]
    events = [created(), *map(event, odd), delta("[DONE]"), completed(), DONE]
    datas = [each.partition(b"data: ")[2].strip() for each in events[:-1]]
    expected = [data[:-1].rstrip() + member if member else data for data in datas]
    async with responses_session(answering(*events, one_by_one=one_by_one), tmp_path) as client:
        for _ in range(2):
            await client.send(create(**lane))
            assert await raw_frames(client) == expected
        assert await client.silent()
        record = await client.gateway.record()
    assert record.bytes_out > sum(map(len, expected))


async def test_an_event_over_several_lines_is_one_line(tmp_path: Path) -> None:
    spread = b'event: response.x\ndata: {"type":\ndata: "response.x"}\n\n'
    async with responses_session(answering(created(), spread, completed()), tmp_path) as client:
        await client.send(create(stream_id="a"))
        assert (await raw_frames(client))[1] == b'{"type": "response.x","stream_id":"a"}'


@pytest.mark.parametrize("lane", [None, "a"])
async def test_what_is_not_one_json_object_is_dropped_and_counted(lane: str | None, tmp_path: Path) -> None:
    events = [created(), *map(event, HOSTILE), delta(), completed()]
    async with responses_session(answering(*events), tmp_path) as client:
        frames = await client.ask(stream_id=lane)
        assert [frame["type"] for frame in frames] == [
            each["type"] for each in data_of(created(), delta(), completed())
        ]
        assert {frame.get("stream_id") for frame in frames} == {lane}
        assert await dropped(client) == str(len(HOSTILE))


async def test_bytes_that_are_no_utf_8_are_escaped_and_the_socket_lives(tmp_path: Path) -> None:
    odd = event(b'{"type":"response.output_text.delta","delta":"\xff"}')
    async with responses_session(answering(created(), delta(), odd, completed()), tmp_path) as client:
        await client.send(create(stream_id="a"))
        frames = [json.loads(frame) for frame in await raw_frames(client)]
    assert frames[2] == {"raw": '{"type":"response.output_text.delta","delta":"\\xff"}', "stream_id": "a"}


async def test_an_upstream_cannot_speak_in_another_lane(tmp_path: Path) -> None:
    forged = event(b'{"type":"response.output_text.delta","stream_id":"b","delta":"x"}')
    async with responses_session(answering(created(), delta(), forged, completed()), tmp_path) as client:
        assert {frame["stream_id"] for frame in await client.ask(stream_id="a")} == {"a"}


# ---- errors within a stream ----

FLAT = {"type": "error", "code": "server_error", "message": "m", "param": None, "sequence_number": 3}
WRAPPED: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "flat": (FLAT, 502, {"type": "upstream_error", "code": "server_error", "message": "m", "param": None}),
    "flat with a status": (
        {**FLAT, "status": 429},
        *(429, {"type": "upstream_error", "code": "server_error", "message": "m", "param": None, "status": 429}),
    ),
    "in a member": (
        {"type": "error", "error": {"type": "t", "code": "c", "message": "m", "param": "p"}},
        *(502, {"type": "t", "code": "c", "message": "m", "param": "p"}),
    ),
    "with a status of its own": (
        {"type": "error", "status": 400, "error": {"type": "t", "code": "c", "message": "m", "param": None}},
        *(400, {"type": "t", "code": "c", "message": "m", "param": None}),
    ),
    "as vLLM has it": (
        {"error": {"message": "m", "type": "BadRequestError", "param": None, "code": 400}},
        *(400, {"type": "BadRequestError", "code": "400", "message": "m", "param": None}),
    ),
    "a sentence": (
        {"error": "broken"},
        *(502, {"type": "upstream_error", "code": None, "message": "broken", "param": None}),
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_an_error_event_gets_a_status_and_a_member_for_the_error(case: str) -> None:
    said, status, error = WRAPPED[case]
    assert json.loads(wrapped(json.dumps(said).encode())) == {"type": "error", "status": status, "error": error}


@pytest.mark.parametrize("named", [True, False], ids=["named by an event line", "named by the data"])
async def test_an_error_event_is_the_responses_last_frame(named: bool, tmp_path: Path) -> None:
    failure = (b"event: error\n" if named else b"") + event(json.dumps(FLAT).encode())
    async with responses_session(answering(created(), delta(), failure), tmp_path) as client:
        *_, last = await client.ask(stream_id="a")
        assert last == {"type": "error", "status": 502, "error": WRAPPED["flat"][2], "stream_id": "a"}
        assert list(last)[-1] == "stream_id"
        assert await client.silent()
        assert (await client.gateway.record()).end_state == "upstream_error"


# ---- clients that do not read ----


async def test_a_slow_client_pauses_all_its_streams_and_misses_nothing(tmp_path: Path) -> None:
    sent = {"a": 0, "b": 0}

    async def script(peer: Peer) -> None:
        name = prompt(await peer.request())
        await peer.send(OK_EVENTS, chunk(created()))
        for number in range(600):
            await peer.send(chunk(delta(f"{number}-" + "x" * 16_000)))
            sent[name] = number + 1
        await peer.send(chunk(completed()), LAST_CHUNK)

    async with responses_session(script, tmp_path) as client:
        client.socket.transport.pause_reading()
        await client.send(create("a", stream_id="a"), create("b", stream_id="b"))
        before: dict[str, int] = {}
        while sent != before or 0 in sent.values():
            before = dict(sent)
            await asyncio.sleep(0.05)
        assert max(sent.values()) < 600
        client.socket.transport.resume_reading()
        frames = [*await client.until("response.completed"), *await client.until("response.completed")]
    for lane in ("a", "b"):
        texts = [frame["delta"] for frame in frames if frame["stream_id"] == lane and "delta" in frame]
        assert [text.partition("-")[0] for text in texts] == [str(number) for number in range(600)]


async def test_a_client_that_floods_and_does_not_read_is_not_listened_to(tmp_path: Path) -> None:
    async with responses_session(answering(created(), completed()), tmp_path) as client:
        client.socket.transport.pause_reading()
        runners = client.gateway.gateway._runners
        [connection] = [each for runner in runners if runner.server for each in runner.server.connections]

        message = json.dumps({"type": "what", "stream_id": "x" * 256})

        async def flood() -> None:
            while True:
                await client.socket.send(message)

        flooding = asyncio.create_task(flood())
        done, _ = await asyncio.wait([flooding], timeout=0.3)
        assert not done
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1024 * 1024
        flooding.cancel()
        client.socket.transport.resume_reading()
        assert (await client.frame())["status"] == 400
        client.socket.transport.abort()


async def test_a_large_event_arrives_whole(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await give(peer, created(), delta("x" * 1_000_000), completed())

    async with responses_session(script, tmp_path) as client:
        frames = await client.ask(stream_id="a")
    assert [len(frame.get("delta", "")) for frame in frames] == [0, 1_000_000, 0]
