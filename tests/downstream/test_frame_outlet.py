"""A socket's outlet: one object a frame, all of a read in one write, nothing after our Close."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import websockets

from tests.support.raw_client import chat, get, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import DONE, LAST_CHUNK, OK_EVENTS, STOP, Peer, chunk, content, event, scripted_upstream

HOSTILE = [
    b'{"id":"c","choices":[]},"type":"done"}',
    b'{"id":"c"}{"id":"d"}',
    b"{'id':1}",
    b'{"id":nan}',
    b'{"id":"\x01"}',
]


async def dropped(port: int) -> int:
    """How many events the route's metric says were dropped."""
    async with raw_client(port) as client:
        await client.send(get("/metrics", "Connection: close"))
        found = re.search(rb'penstock_malformed_events_total\{route="m"\} (\d+)', await client.rest())
    return int(found[1]) if found else 0


async def frames_of(events: list[bytes], tmp_path: Path, *, in_one_read: bool) -> tuple[list[bytes], int]:
    """What a client of the bare dialect gets, and how many events were told to be malformed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        reads = [b"".join(events)] if in_one_read else events
        await peer.send(OK_EVENTS, chunk(content("first")))
        for read in reads:
            await peer.send(chunk(read))
        await peer.send(chunk(STOP + DONE) + LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        websockets.connect(gateway.ws_url + "/v1/ws", compression=None) as socket,
    ):
        await socket.send(json.dumps(chat()))
        frames: list[bytes] = []
        while not frames or frames[-1] != b"[DONE]":
            frames.append(await socket.recv(decode=False))
        return frames[1:-2], await dropped(gateway.port)


@pytest.mark.parametrize("in_one_read", [True, False], ids=["in one read", "one by one"])
async def test_every_frame_is_one_json_object(in_one_read: bool, tmp_path: Path) -> None:
    sound = [content("a")[6:-2], b'{"id":"\xc3\xbc","choices":[]}', b'{ "id" : "spaced" , "choices": [] }']
    events = [event(data) for pair in zip(HOSTILE, sound * 2, strict=False) for data in pair]
    frames, dropped = await frames_of(events, tmp_path, in_one_read=in_one_read)
    assert frames == (sound * 2)[: len(HOSTILE)]
    assert dropped == len(HOSTILE)


async def test_bytes_that_are_no_utf_8_are_escaped(tmp_path: Path) -> None:
    frames, _ = await frames_of([event(b'{"id":"\xff"}')], tmp_path, in_one_read=False)
    assert json.loads(frames[0]) == {"raw": '{"id":"\\xff"}'}
