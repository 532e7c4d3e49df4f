"""Streamed answers as bytes: chunks, ends, keep-alives, truncations, slow readers."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from proxy.downstream.streamed import StreamedAnswer
from proxy.telemetry.record import EndState
from proxy.wire.sse import Parser
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.sse_streams import ANTHROPIC, RESPONSES
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    OK_EVENTS_UNTIL_CLOSE,
    ROLE,
    STOP,
    Peer,
    Script,
    answering,
    answering_once,
    chunk,
    content,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.raw_client import RawClient

ONE, TWO, THREE = content("one"), content("two"), content("three")


async def body_bytes(client: RawClient) -> bytes:
    """The chunked body as its bytes came, framing and all."""
    await client.reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(5):
        return await client.reader.readuntil(b"\r\n0\r\n\r\n")


def paced(*pieces: bytes, pause_s: float = 0.02) -> Script:
    """A script that answers with these pieces, each in a packet of its own."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            for piece in pieces:
                await peer.send(piece)
                await asyncio.sleep(pause_s)

    return script


async def test_each_read_of_the_upstream_is_one_chunk(tmp_path: Path) -> None:
    script = paced(
        OK_EVENTS, chunk(ROLE + ONE), chunk(TWO) + chunk(THREE), chunk(STOP[:-1]), chunk(STOP[-1:] + DONE) + LAST_CHUNK
    )
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat()))
            raw = await body_bytes(client)
    # The commit point may split what came with the first content, nothing else is cut or kept back.
    assert raw.replace(chunk(ROLE) + chunk(ONE), chunk(ROLE + ONE)) == (
        chunk(ROLE + ONE) + chunk(TWO + THREE) + chunk(STOP + DONE) + LAST_CHUNK
    )
    assert gateway.records[0].bytes_out == len(raw)


@pytest.mark.parametrize("line", ["Connection: close", "Connection: keep-alive"])
async def test_an_old_client_gets_plain_bytes_and_the_connections_end(line: str, tmp_path: Path) -> None:
    pieces = (OK_EVENTS, chunk(ONE + TWO), chunk(STOP + DONE), LAST_CHUNK)
    async with scripted_upstream(answering(*pieces)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat(), line).replace(b"HTTP/1.1", b"HTTP/1.0"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            body = await client.rest()
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"keep-alive" not in head.lower()
    assert body == ONE + TWO + STOP + DONE


async def test_a_client_that_wants_the_connection_closed_gets_it_closed(tmp_path: Path) -> None:
    pieces = (OK_EVENTS, chunk(ONE + STOP + DONE), LAST_CHUNK)
    async with scripted_upstream(answering(*pieces)) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat(), "Connection: close"))
            answer = await client.answer()
            assert await client.rest() == b""
    assert answer.headers["connection"] == "close"
    assert (answer.body, answer.whole) == (ONE + STOP + DONE, True)


KEEPALIVES = {"/v1/chat/completions": b": ping\n", "/v1/messages": b'event: ping\ndata: {"type": "ping"}\n\n'}
KEEPALIVES |= {"/v1/completions": b": ping\n", "/v1/responses": b": ping\n"}
VENDORS = {"/v1/messages": ANTHROPIC, "/v1/responses": RESPONSES}


async def test_no_sign_of_life_follows_the_end_of_a_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that stood still for so long may look at its timers first, and at those who wait for the end later."""
    end_with = StreamedAnswer.end_with

    def end_and_stand_still(answer: StreamedAnswer, last_words: bytes) -> None:
        end_with(answer, last_words)
        outlet = answer._outlet
        assert outlet is not None
        if outlet._silence_timer is not None:
            outlet._last_put = 0.0
            outlet._check_silence()

    monkeypatch.setattr(StreamedAnswer, "end_with", end_and_stand_still)
    async with (
        scripted_upstream(answering(OK_EVENTS, chunk(ONE + STOP + DONE), LAST_CHUNK)) as upstream,
        served(one_route(upstream.url, "keepalive: 30s"), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        for _ in range(2):
            await client.send(post("/v1/chat/completions", chat()))
            answer = await client.answer()
            assert (answer.status, answer.whole, answer.body) == (200, True, ONE + STOP + DONE)


@pytest.mark.parametrize("path", KEEPALIVES)
async def test_silence_between_events_is_broken_by_signs_of_life(path: str, tmp_path: Path) -> None:
    events = Parser(1 << 20).feed(VENDORS.get(path, ONE + TWO + STOP + DONE))
    events = [event for event in events if event.type != b"ping"]
    cut = -2

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(b"".join(event.wire for event in events[:cut])))
        await asyncio.sleep(0.1)
        await peer.send(chunk(b"".join(event.wire for event in events[cut:])), LAST_CHUNK)

    async with (
        scripted_upstream(script) as upstream,
        served(one_route(upstream.url, "keepalive: 30ms"), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post(path, chat()))
        answer = await client.answer()
    first, last = (b"".join(event.wire for event in part) for part in (events[:cut], events[cut:]))
    silence = answer.body.removeprefix(first).removesuffix(last)
    assert answer.whole
    assert silence.count(KEEPALIVES[path]) >= 2
    assert silence.replace(KEEPALIVES[path], b"") == b""
    assert gateway.records[0].end_state is EndState.COMPLETED


async def test_no_sign_of_life_comes_while_events_do_or_after_the_end(tmp_path: Path) -> None:
    pieces = [OK_EVENTS, *(chunk(content(str(number))) for number in range(10)), chunk(STOP + DONE) + LAST_CHUNK]
    async with (
        scripted_upstream(paced(*pieces, pause_s=0.025)) as upstream,
        served(one_route(upstream.url, "keepalive: 200ms"), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(post("/v1/chat/completions", chat()))
        answer = await client.answer()
        await asyncio.sleep(0.25)
        client.writer.write_eof()
        assert await client.rest() == b""
    assert b"ping" not in answer.body


TRUNCATED = {
    "/v1/chat/completions": (
        ROLE + ONE,
        rb'data: \{"error":\{"message":"[^"]+","type":"[^"]+","param":null,"code":"(\w+)"\}\}\n\n',
    ),
    "/v1/completions": (
        ROLE + ONE,
        rb'data: \{"error":\{"message":"[^"]+","type":"[^"]+","param":null,"code":"(\w+)"\}\}\n\n',
    ),
    "/v1/messages": (
        ANTHROPIC.partition(b"event: message_stop")[0],
        rb'event: error\ndata: \{"type":"error","error":\{.+\}\}\n\n',
    ),
    "/v1/responses": (
        RESPONSES.partition(b"event: response.completed")[0],
        rb'event: response.failed\ndata: \{.*"status":"failed".*"error":\{.+\}.*\}\n\n',
    ),
}


WAYS = ["reset", "clean end", "inside an event", "inside a chunk", "bad chunk", "end of until-close"]


@pytest.mark.parametrize("path", TRUNCATED)
@pytest.mark.parametrize(
    "way", ["reset", "clean end", "inside an event", "inside a chunk", "bad chunk", "end of until-close"]
)
async def test_an_answer_that_breaks_off_ends_with_one_error_of_its_protocol(
    path: str, way: str, tmp_path: Path
) -> None:
    whole, error = TRUNCATED[path]

    async def script(peer: Peer) -> None:
        await peer.request()
        until_close = way == "end of until-close"
        await peer.send(OK_EVENTS_UNTIL_CLOSE if until_close else OK_EVENTS, whole if until_close else chunk(whole))
        await asyncio.sleep(0.02)
        match way:
            case "reset":
                peer.reset()
            case "clean end":
                await peer.send(LAST_CHUNK)
            case "inside an event":
                await peer.send(chunk(b'data: {"half'), LAST_CHUNK)
            case "inside a chunk":
                await peer.send(b"ff\r\ndata: {")
            case "bad chunk":
                await peer.send(b"canary\r\n")
            case _:
                pass

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post(path, chat()))
            answer = await client.answer()
    assert (answer.status, answer.whole) == (200, True)
    assert answer.body.startswith(whole)
    last = answer.body.removeprefix(whole)
    assert re.fullmatch(error, last), last
    assert b"DONE" not in last
    assert b"finish_reason" not in last
    assert b"canary" not in answer.body
    [record] = gateway.records
    expected = EndState.UPSTREAM_ERROR if way == "bad chunk" else EndState.UPSTREAM_TRUNCATED
    assert (record.status, record.end_state) == (200, expected)


@pytest.mark.parametrize("content_type", [b"audio/mpeg", b"application/x-ndjson"])
async def test_a_body_of_unknown_type_that_breaks_off_has_no_last_chunk(content_type: bytes, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % content_type
    for whole in (False, True):
        pieces = (head, chunk(b"abc"), LAST_CHUNK if whole else b"")
        async with (
            scripted_upstream(answering_once(*pieces)) as upstream,
            served(one_route(upstream.url), tmp_path) as gateway,
        ):
            async with raw_client(gateway.port) as client:
                await client.send(post("/v1/audio/speech", {"model": "m"}))
                answer = await client.answer()
            record = await gateway.record()
        assert (answer.body, answer.whole) == (b"abc", whole)
        assert answer.headers["content-type"] == content_type.decode()
        assert record.end_state is (EndState.COMPLETED if whole else EndState.UPSTREAM_TRUNCATED)


async def test_a_stall_ends_with_one_error(tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK_EVENTS, chunk(ONE))
        await peer.closed()

    settings = ("timeouts: {idle: 40ms}",)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url, *settings), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await client.send(post("/v1/chat/completions", chat()))
            answer = await client.answer()
    assert answer.whole
    assert b'"code":"upstream_idle"' in answer.body.removeprefix(ONE)
    assert gateway.records[0].end_state is EndState.UPSTREAM_IDLE


class Flood:
    """An upstream that sends numbered events as fast as they are read, until `last`; `sent` counts them."""

    def __init__(self, last: int) -> None:
        self._last = last
        self.sent = 0

    @staticmethod
    def event(number: int) -> bytes:
        return content(f"{number}-" + "x" * 16_000)

    async def script(self, peer: Peer) -> None:
        request = await peer.request()
        await peer.send(OK_EVENTS)
        if b"neighbour" in request.body:
            for number in range(50):
                await peer.send(chunk(content(str(number))))
                await asyncio.sleep(0.002)
        else:
            for number in range(self._last):
                await peer.send(chunk(self.event(number)))
                self.sent = number
        await peer.send(chunk(STOP + DONE), LAST_CHUNK)


async def test_a_slow_reader_slows_its_own_upstream_only_and_gets_every_byte(tmp_path: Path) -> None:
    flood = Flood(last=1500)
    async with scripted_upstream(flood.script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as slow, raw_client(gateway.port) as neighbour:
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await slow.send(post("/v1/chat/completions", chat()))
            before = -1
            while flood.sent != before or not flood.sent:  # until everything on the way is full
                before = flood.sent
                await asyncio.sleep(0.05)
            assert flood.sent < 1000
            [transport] = [
                connection.transport
                for connection in gateway.gateway._runners[0].server.connections  # type: ignore[union-attr]
                if connection.writing_paused
            ]
            assert 0 < transport.get_write_buffer_size() < 512 * 1024  # type: ignore[union-attr]
            started = asyncio.get_running_loop().time()
            await neighbour.send(post("/v1/chat/completions", chat(user="neighbour")))
            beside = await neighbour.answer()
            assert asyncio.get_running_loop().time() - started < 1
            assert beside.body == b"".join(content(str(number)) for number in range(50)) + STOP + DONE
            assert flood.sent == before
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            received = await body_bytes(slow)
    assert re.findall(rb'"content":"(\d+)-', received) == [b"%d" % number for number in range(1500)]
    assert received.endswith(DONE + b"\r\n0\r\n\r\n")
    assert gateway.records[-1].end_state is EndState.COMPLETED
