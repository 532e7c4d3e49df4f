"""Reading bodies: how large, how slow, how framed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.telemetry.record import EndState
from tests.support.raw_client import chat, post, raw_client
from tests.support.served import served
from tests.support.upstream import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.raw_client import RawAnswer

CANARY = "canary-91ce"
ROUTES = "server: {port: 0, max_body: 1000, timeouts: {body: 150ms}}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def of_size(size: int) -> bytes:
    """A body of exactly so many bytes."""
    empty = json.dumps(chat(stream=False, user=""))
    return json.dumps(chat(stream=False, user="x" * (size - len(empty)))).encode()


def code(answer: RawAnswer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error"]["code"]


async def test_a_body_of_exactly_the_limit_is_taken(tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        for request in (post("/v1/chat/completions", of_size(1000)), CHUNKED + chunk(of_size(1000)) + LAST_CHUNK):
            await client.send(request)
            assert (await client.answer()).status == 200
    assert [record.bytes_in for record in gateway.records] == [1000, 1000]


async def test_a_larger_length_is_refused_before_the_body_comes(tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", of_size(1001))[:-1001])
        answer = await client.answer()
    assert code(answer) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert gateway.records[0].end_state is EndState.REJECTED


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(CHUNKED + chunk(b" " * 600))
        await asyncio.sleep(0.01)
        await client.send(chunk(b" " * 401))  # and it does not end
        assert code(await client.answer()) == (413, "body_too_large")
    assert len(gateway.records) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x-unknown"])
async def test_a_compressed_body_is_refused(encoding: str, tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", b"\x1f\x8b\x08\x00", f"Content-Encoding: {encoding}"))
        answer = await client.answer()
    assert code(answer) == (415, "unsupported_encoding")
    assert encoding not in answer.body.decode()


async def test_identity_is_no_compression(tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", chat(stream=False), "Content-Encoding: Identity"))
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("begun", [b"", b'{"model":'], ids=["nothing", "a part"])
async def test_a_pause_in_the_body_ends_it(begun: bytes, tmp_path: Path) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", of_size(100))[:-100] + begun)
        answer = await client.answer()
    assert code(answer) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    assert (gateway.records[0].end_state, gateway.records[0].status) == (EndState.REJECTED, 408)


async def test_a_body_byte_by_byte_is_taken_though_it_takes_longer_than_one_pause(tmp_path: Path) -> None:
    request = post("/v1/chat/completions", chat(stream=False))
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(request[:-20])
        for at in range(len(request) - 20, len(request)):
            await asyncio.sleep(0.01)
            await client.send(request[at : at + 1])
        assert (await client.answer()).status == 200
    assert (gateway.records[0].duration_ms or 0) > 150


@pytest.mark.parametrize(
    "framing",
    [
        f"{CANARY}\r\n".encode(),
        b"5\r\nhellocanary-91ce\r\n",
        b"-5\r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"5\nhello\r\n",
        b"2\r\n{}\r\n0\r\ncanary-91ce\x01: 1\r\n\r\n",
    ],
    ids=["no number", "too long a chunk", "negative", "a huge number", "bare LF", "bad trailer"],
)
@pytest.mark.parametrize("together", [True, False], ids=["with the head", "after the head"])
async def test_broken_framing_is_one_400_that_repeats_nothing(
    framing: bytes, together: bool, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        if together:
            await client.send(CHUNKED + framing)
        else:
            await client.send(CHUNKED)
            await asyncio.sleep(0.01)
            await client.send(framing)
        answer = await client.answer()
        assert await client.rest() == b""
    assert code(answer) == (400, "invalid_request")
    assert answer.headers["connection"] == "close"
    assert CANARY not in str(answer) + quiet_log.text + repr(gateway.records)


async def test_a_client_that_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    body = of_size(200)
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/chat/completions", body, "Expect: 100-continue")[:-200])
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert (await client.answer()).status == 200


async def test_a_refused_body_does_not_keep_its_connection_waiting(tmp_path: Path) -> None:
    """A key that is wrong, a path that is none: the answer comes first, whatever of the body is still to come."""
    async with served(ROUTES, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(post("/v1/../x", of_size(1000))[:-500])
        assert (await client.answer()).status == 404
        await client.send(of_size(1000)[-500:] + post("/v1/chat/completions", chat(stream=False)))
        assert (await client.answer()).status == 200
