"""A client's connection: what cannot be parsed, what is smuggled, what never ends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.downstream import server
from tests.support.raw_client import ask, chat, get, post, raw_client
from tests.support.served import one_route, served
from tests.support.upstream import answering, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.raw_client import RawAnswer

CANARY = "canary-7f3a"
DEMO = "server: {port: 0}\nroutes: {m: 'demo://?tokens=2&interval=1ms&first=1ms'}\n"
WHOLE = json.dumps(chat(stream=False))


def check_refusal(answer: RawAnswer, log: str) -> None:
    """A short JSON answer that repeats nothing and ends the connection."""
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "invalid_request"
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-penstock-source"] == "gateway"
    assert answer.headers["connection"] == "close"
    assert answer.headers["server"] == "penstock"
    assert len(answer.body) < 200
    assert CANARY not in str(answer.headers) + answer.body.decode() + log
    assert "Traceback" not in log


MALFORMED = {
    "control character in Authorization": get("/v1/models", f"Authorization: Bearer {CANARY}\x01"),
    "over-long Authorization": get("/v1/models", f"Authorization: Bearer {CANARY}{'x' * 17_000}"),
    "over-long request line": get(f"/v1/{CANARY}{'x' * 9000}"),
    "too many headers": get("/v1/models", *(f"X-{number}: {CANARY}" for number in range(101))),
    "no name": get("/v1/models", f": {CANARY}"),
    "blank in a name": get("/v1/models", f"X {CANARY}: 1"),
    "blank before the colon": get("/v1/models", f"X-Api-Key : {CANARY}"),
    "no colon": get("/v1/models", CANARY),
    "NUL in a value": get("/v1/models", f"X-Api-Key: {CANARY}\0"),
    "bad method": f"{CANARY}?! / HTTP/1.1\r\n\r\n".encode(),
    "bad version": f"GET /{CANARY} HTTP/9.9\r\nHost: h\r\n\r\n".encode(),
    "no HTTP at all": f"\x16\x03\x01{CANARY}\r\n\r\n".encode(),
    "two hosts": get("/v1/models", f"Host: {CANARY}"),
    "no host": f"GET /{CANARY} HTTP/1.1\r\n\r\n".encode(),
    "unknown expectation": post("/v1/chat/completions", chat(), f"Expect: {CANARY}"),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_head_is_answered_with_a_400_that_repeats_nothing(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    async with served(DEMO, tmp_path) as gateway, raw_client(gateway.port) as client:
        await client.send(MALFORMED[case])
        answer = await client.answer()
        assert await client.rest() == b""
    check_refusal(answer, quiet_log.text)
    assert all(CANARY not in repr(record) for record in gateway.records)


def smuggled(*headers: str, body: str = WHOLE, line: str = "POST /v1/chat/completions HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: 127.0.0.1", *headers, "", body]).encode()


SECOND = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(WHOLE)}\r\n\r\n{WHOLE}"
CHUNKED = f"{len(WHOLE):x}\r\n{WHOLE}\r\n0\r\n\r\n"
LENGTH = f"Content-Length: {len(WHOLE)}"
SMUGGLED = {
    "CL and TE": smuggled(LENGTH, "Transfer-Encoding: chunked", body=CHUNKED + SECOND),
    "TE and CL 0": smuggled("Transfer-Encoding: chunked", "Content-Length: 0", body=CHUNKED + SECOND),
    "two different lengths": smuggled(LENGTH, "Content-Length: 4", body=WHOLE + SECOND),
    "two equal lengths": smuggled(LENGTH, LENGTH, body=WHOLE + SECOND),
    "a list of lengths": smuggled(f"{LENGTH}, {len(WHOLE)}", body=WHOLE + SECOND),
    "a signed length": smuggled(f"Content-Length: +{len(WHOLE)}", body=WHOLE + SECOND),
    "a hexadecimal length": smuggled("Content-Length: 0x10", body=WHOLE + SECOND),
    "TE xchunked": smuggled("Transfer-Encoding: xchunked", body=CHUNKED + SECOND),
    "TE not last": smuggled("Transfer-Encoding: chunked, identity", body=CHUNKED + SECOND),
    "TE after a vertical tab": smuggled("Transfer-Encoding: \x0bchunked", body=CHUNKED + SECOND),
    "bare LF in the head": smuggled(LENGTH).replace(b"\r\n", b"\n", 2) + SECOND.encode(),
    "bare CR in the head": smuggled("X: a\rTransfer-Encoding: chunked", LENGTH) + SECOND.encode(),
    "folded header": smuggled("X: a\r\n Transfer-Encoding: chunked", LENGTH) + SECOND.encode(),
    "a length in the trailer": smuggled("Transfer-Encoding: chunked", body=CHUNKED[:-2] + f"{LENGTH}\r\n\r\n" + SECOND),
    "a host in the trailer": smuggled("Transfer-Encoding: chunked", body=CHUNKED[:-2] + "Host: evil\r\n\r\n" + SECOND),
    "NUL in the length": smuggled("Content-Length: 1\0" + str(len(WHOLE))) + SECOND.encode(),
}


@pytest.mark.parametrize("case", SMUGGLED)
async def test_a_request_of_two_minds_is_refused_and_nothing_of_it_goes_upstream(
    case: str, tmp_path: Path, quiet_log: pytest.LogCaptureFixture
) -> None:
    async with (
        scripted_upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(SMUGGLED[case])
        answer = await client.answer()
        assert await client.rest() == b""
        assert upstream.requests == []
    check_refusal(answer, quiet_log.text)


HARMLESS = {
    "chunk extension": smuggled("Transfer-Encoding: chunked", body=CHUNKED.replace("\r\n", ";a=b\r\n", 1)),
    "trailer": smuggled("Transfer-Encoding: chunked", body=CHUNKED[:-2] + "X-Sum: 1\r\n\r\n"),
    "a POST that would upgrade": smuggled("Connection: Upgrade", "Upgrade: websocket", LENGTH),
    "TE in capitals": smuggled("Transfer-Encoding: CHUNKED", body=CHUNKED),
    "a body of exactly its length, another request behind it": smuggled(LENGTH),
}


@pytest.mark.parametrize("case", HARMLESS)
async def test_what_may_confuse_others_is_one_request_upstream_in_our_own_framing(case: str, tmp_path: Path) -> None:
    async with (
        scripted_upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(HARMLESS[case] + get("/v1/models"))
        assert (await client.answer()).status == 200
        assert json.loads((await client.answer("GET")).body)["object"] == "list"
        [request] = upstream.requests
    assert request.body.decode() == WHOLE
    assert request.headers("content-length") == [str(len(WHOLE))]
    assert request.headers("transfer-encoding") == []
    assert request.headers("host") == [upstream.url.removeprefix("http://")]


UPGRADING = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
UPGRADE_KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/v1/ws", *UPGRADING, UPGRADE_KEY, f"Content-Length: {len(SECOND)}") + SECOND.encode(),
        get("/v1/ws", *UPGRADING, UPGRADE_KEY, "Transfer-Encoding: chunked") + CHUNKED.encode() + SECOND.encode(),
        smuggled(*UPGRADING, UPGRADE_KEY, LENGTH, body=SECOND, line="GET /v1/chat/completions HTTP/1.1"),
    ],
    ids=["length", "chunked", "shorter length"],
)
async def test_an_upgrade_with_a_body_is_refused_and_its_body_is_no_request(
    request_bytes: bytes, tmp_path: Path
) -> None:
    async with (
        scripted_upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as upstream,
        served(one_route(upstream.url), tmp_path) as gateway,
        raw_client(gateway.port) as client,
    ):
        await client.send(request_bytes)
        assert (await client.answer("GET")).status == 400
        assert await client.rest() == b""
        assert upstream.requests == []


@pytest.mark.parametrize("target", ["http://evil.test/v1/models", "https://evil.test:443/v1/models", "//evil.test/x"])
async def test_an_absolute_form_target_with_another_host_is_refused(target: str, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        answer = await ask(gateway.port, get(target), "GET")
    assert answer.status in (403, 404)
    assert "evil" not in answer.body.decode()


async def test_an_absolute_form_target_with_our_own_host_is_served(tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        answer = await ask(gateway.port, get(f"http://127.0.0.1:{gateway.port}/v1/models"), "GET")
    assert answer.status == 200


@pytest.mark.parametrize("request_line", ["CONNECT 127.0.0.1:22 HTTP/1.1", "TRACE / HTTP/1.1", "OPTIONS * HTTP/1.1"])
async def test_the_gateway_is_no_forward_proxy(request_line: str, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        answer = await ask(gateway.port, f"{request_line}\r\nHost: 127.0.0.1\r\n\r\n".encode(), "GET")
    assert 400 <= answer.status < 500
    assert json.loads(answer.body)["error"]["code"] in ("not_found", "method_not_allowed", "invalid_request")


async def test_a_head_that_never_ends_is_given_up(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with served(DEMO.replace("port: 0", "port: 0, timeouts: {headers: 80ms}"), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            began = loop.time()
            for piece in (b"GET /v1/models HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n", b"X-A: 1\r\n", b"X-B: 2\r\n"):
                await client.send(piece)  # each piece is a sign of life, and none buys more time
                await asyncio.sleep(0.015)
            answer = await client.answer()
            assert await client.rest() == b""
    assert 0.07 < loop.time() - began < 1
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, "request_timeout")
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["connection"] == "close"
    assert gateway.records == []


async def test_an_idle_connection_is_not_a_slow_head(tmp_path: Path) -> None:
    async with served(DEMO.replace("port: 0", "port: 0, timeouts: {headers: 30ms}"), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            await asyncio.sleep(0.08)
            for _ in range(2):
                await client.send(get("/v1/models"))
                assert (await client.answer("GET")).status == 200
                await asyncio.sleep(0.08)


async def test_a_head_in_two_pieces_is_served(tmp_path: Path) -> None:
    async with served(DEMO.replace("port: 0", "port: 0, timeouts: {headers: 200ms}"), tmp_path) as gateway:
        async with raw_client(gateway.port) as client:
            for _ in range(2):
                request = get("/v1/models")
                await client.send(request[:20])
                await asyncio.sleep(0.01)
                await client.send(request[20:])
                assert (await client.answer("GET")).status == 200
            await asyncio.sleep(0.25)
            await client.send(get("/v1/models"))
            assert (await client.answer("GET")).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/v1/models", "X: " + "x" * (server.MAX_FIELD_BYTES - 100)), 200),
        (get("/v1/models", "X: " + "x" * (server.MAX_FIELD_BYTES + 100)), 400),
        (get("/v1/models?" + "x" * (server.MAX_LINE_BYTES - 100)), 200),
        (get("/v1/models?" + "x" * (server.MAX_LINE_BYTES + 100)), 400),
        (get("/v1/models", *(f"X-{number}: 1" for number in range(server.MAX_HEADERS - 2))), 200),
        (get("/v1/models", *(f"X-{number}: 1" for number in range(server.MAX_HEADERS + 1))), 400),
    ],
    ids=["field", "long field", "line", "long line", "headers", "many headers"],
)
async def test_limits_of_a_head_are_where_we_put_them(request_bytes: bytes, status: int, tmp_path: Path) -> None:
    async with served(DEMO, tmp_path) as gateway:
        assert (await ask(gateway.port, request_bytes, "GET")).status == status
