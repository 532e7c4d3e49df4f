"""Answers in ready bytes: exactly these lines, for every kind of client and status."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.raw_client import chat, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import Peer, answer, answering, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

BODY = b'{"choices":[]}'
ASKED = post("/v1/chat/completions", chat(stream=False), "x-request-id: mine")
DATE = re.compile(rb"Date: (?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n")
OURS = (
    b"x-request-id: mine\r\nx-penstock-source: upstream\r\nx-penstock-route: m\r\nx-penstock-replica: 0\r\n"
    b"x-penstock-attempts: 1\r\nVary: Origin\r\n"
)


async def told(request: bytes, upstream_says: bytes, tmp_path: Path, *, stays: bool) -> bytes:
    """All that comes back, less its Date; the next answer on the connection shows that it `stays`."""
    async with (
        scripted_upstream(answering(upstream_says)) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(request)
        if stays:
            await client.send(b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        got = await client.rest()
    first, separator, _ = got.partition(b"HTTP/1.1 404 ") if stays else (got, b"-", b"")
    assert separator
    assert len(DATE.findall(first)) == 1
    return DATE.sub(b"", first)


@pytest.mark.parametrize(
    ("version", "header", "line", "stays"),
    [
        ("1.1", "X: 1", b"", True),
        ("1.1", "Connection: keep-alive", b"", True),
        ("1.1", "Connection: close", b"Connection: close\r\n", False),
        ("1.0", "X: 1", b"", False),
        ("1.0", "Connection: keep-alive", b"Connection: keep-alive\r\n", True),
    ],
)
async def test_an_answer_is_exactly_these_bytes_and_the_connection_stays_if_the_client_says_so(
    version: str, header: str, line: bytes, stays: bool, tmp_path: Path
) -> None:
    asked = post("/v1/chat/completions", chat(stream=False), "x-request-id: mine", header)
    asked = asked.replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    got = await told(asked, answer(200, BODY), tmp_path, stays=stays)
    assert got == (
        b"HTTP/%b 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: 14\r\nServer: penstock\r\n%b\r\n%b"
        % (version.encode(), OURS, line, BODY)
    )


async def test_a_status_that_nobody_knows_has_no_reason(tmp_path: Path) -> None:
    got = await told(ASKED, answer(299, BODY), tmp_path, stays=True)
    assert got.startswith(b"HTTP/1.1 299 \r\n")


async def test_an_answer_without_content_says_nothing_of_its_length(tmp_path: Path) -> None:
    got = await told(ASKED, b"HTTP/1.1 204 No Content\r\nX-Vendor: 1\r\n\r\n", tmp_path, stays=True)
    assert got == b"HTTP/1.1 204 No Content\r\nX-Vendor: 1\r\n%bServer: penstock\r\n\r\n" % OURS


async def test_a_body_of_no_named_type_is_said_to_be_bytes_and_an_empty_one_nothing(tmp_path: Path) -> None:
    got = await told(ASKED, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", tmp_path, stays=True)
    assert got.count(b"Content-Type: application/octet-stream\r\n") == 1
    got = await told(ASKED, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", tmp_path, stays=True)
    assert b"content-type" not in got.lower()
    assert b"Content-Length: 0\r\n" in got


async def test_a_reader_that_is_behind_holds_back_the_next_request_on_its_connection(tmp_path: Path) -> None:
    """Pipelined answers must not pile up in memory for a client that takes none of them."""
    large, requests = b'"' + b"x" * 200_000 + b'"', 100

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer(200, large))

    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(ASKED * requests)
            at_first = -1
            while len(gateway.records) != at_first:  # until no more are answered
                at_first = len(gateway.records)
                await asyncio.sleep(0.3)
            assert 0 < at_first < requests
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(requests):
                assert (await client.answer()).body == large
    assert len(gateway.records) == requests
