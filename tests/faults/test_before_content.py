"""What goes wrong upstream before the first content event: alone, the client gets a status that says so; beside another
replica it gets that one's answer and notices nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.bad_replicas import BadReplica, deaf, nameless, playing, refusing, without_tls
from tests.support.clients import Client, Seen, over_bare, over_http, over_sse
from tests.support.served import served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    OK_EVENTS_UNTIL_CLOSE,
    ROLE,
    Peer,
    answer,
    answering,
    chunk,
    content,
    event,
    saying,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = {"http": over_http, "sse": over_sse, "websocket": over_bare}
WHOLE = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"well"},"finish_reason":"stop"}]}'
ERROR = b'{"error":{"message":"mine","type":"t","param":null,"code":"its_own"}}'
UNREACHABLE, INVALID, TRUNCATED, SILENT = (
    (502, "upstream_unreachable"),
    (502, "upstream_invalid"),
    (502, "upstream_truncated"),
    (504, "first_token_timeout"),
)
HURRY = "timeouts: {connect: 300ms, first_token: 200ms}"


async def well(peer: Peer) -> None:
    """The replica beside a bad one: it streams where that is asked for."""
    while True:
        streams = b'"stream": true' in (await peer.request()).body
        whole = OK_EVENTS + chunk(ROLE + content("we") + content("ll") + DONE) + LAST_CHUNK
        await peer.send(whole if streams else answer(200, WHOLE))


@dataclass(frozen=True)
class Row:
    """`told`: the status and the code that a client gets where there is no other replica. `elsewhere`: another one is
    asked. `streams`: only a stream can fail so."""

    replica: BadReplica
    told: tuple[int, str]
    elsewhere: bool = True
    streams: bool = False


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b""])


FAULTS = {
    "refused": Row(refusing, UNREACHABLE),
    "no such name": Row(nameless, UNREACHABLE),
    "no TLS": Row(without_tls, UNREACHABLE),
    "connect timeout": Row(deaf, UNREACHABLE),
    "accepts and closes": Row(playing(saying()), UNREACHABLE),
    "accepts and resets": Row(playing(saying(end="reset")), UNREACHABLE),
    "closes inside its head": Row(playing(saying(b"HTTP/1.1 200 OK\r\nConte")), UNREACHABLE),
    "no head": Row(playing(saying(end="stall")), SILENT),
    "no first event": Row(playing(saying(OK_EVENTS, end="stall")), SILENT),
    "no body": Row(playing(saying(head(b"Content-Length: 9"), end="stall")), SILENT),
    "only comments": Row(playing(saying(OK_EVENTS, chunk(b": ping\n\n"), end="stall")), SILENT),
    "500": Row(playing(answering(answer(500, ERROR))), (500, "its_own")),
    "502": Row(playing(answering(answer(502, ERROR))), (502, "its_own")),
    "503": Row(playing(answering(answer(503, ERROR, b"Retry-After: 9"))), (503, "its_own")),
    "504": Row(playing(answering(answer(504, ERROR))), (504, "its_own")),
    "429": Row(playing(answering(answer(429, ERROR, b"Retry-After: 9"))), (429, "its_own")),
    "400": Row(playing(answering(answer(400, ERROR))), (400, "its_own"), elsewhere=False),
    "401": Row(playing(answering(answer(401, ERROR))), (401, "its_own"), elsewhere=False),
    "404": Row(playing(answering(answer(404, ERROR))), (404, "its_own"), elsewhere=False),
    "422": Row(playing(answering(answer(422, ERROR))), (422, "its_own"), elsewhere=False),
    "redirect": Row(playing(saying(answer(302, b"", b"Location: http://127.0.0.1:9/"))), INVALID, elsewhere=False),
    "101 nobody asked for": Row(
        playing(saying(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")), INVALID, False
    ),
    "garbage status line": Row(playing(saying(b"NOPE/9 what\r\n\r\n")), INVALID, elsewhere=False),
    "oversized head": Row(playing(saying(head(b"X-Large: " + b"x" * 70_000))), INVALID, elsewhere=False),
    "too many headers": Row(playing(saying(head(*[b"X-H: 1"] * 200))), INVALID, elsewhere=False),
    "length and chunked": Row(
        playing(saying(head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n")), INVALID, False
    ),
    "gzip": Row(playing(saying(head(b"Content-Encoding: gzip", b"Content-Length: 0"))), INVALID, elsewhere=False),
    "bad chunk size": Row(playing(saying(OK_EVENTS, b"zz\r\n")), INVALID, elsewhere=False),
    "half a body": Row(playing(saying(answer(200, WHOLE)[:-5])), TRUNCATED),
    "reset after preamble": Row(playing(saying(OK_EVENTS, chunk(ROLE), end="reset")), TRUNCATED, streams=True),
    "end inside the first event": Row(playing(saying(OK_EVENTS, chunk(content("x")[:-9]))), TRUNCATED, streams=True),
    "end inside a chunk": Row(playing(saying(OK_EVENTS, chunk(content("x"))[:9])), TRUNCATED, streams=True),
    "end without an end": Row(playing(saying(OK_EVENTS_UNTIL_CLOSE, ROLE)), TRUNCATED, streams=True),
    "error event": Row(
        playing(answering(OK_EVENTS, chunk(ROLE + event(ERROR)), LAST_CHUNK)), (502, "its_own"), streams=True
    ),
    "error event with a status": Row(
        playing(answering(OK_EVENTS, chunk(event(b'{"error":{"message":"m","code":503}}')), LAST_CHUNK)),
        (503, "503"),
        streams=True,
    ),
    "error body under 200": Row(playing(answering(answer(200, ERROR))), (502, "its_own"), streams=True),
}
ROWS = [
    pytest.param(row, client, id=f"{name}, {how}")
    for name, row in FAULTS.items()
    for how, client in CLIENTS.items()
    if not (row.streams and client is over_http)
]


def routes(*urls: str, more: str = "") -> str:
    """The route `m` on these replicas, asked in turn from the first on, each of them once."""
    listed = ", ".join(f'"{url}"' for url in urls)
    retry = f"retry: {{attempts: {len(urls)}}}"
    settings = f"balance: round_robin, health: none, {retry}, {HURRY}{more}"
    return f"server: {{port: 0}}\nroutes: {{m: {{replicas: [{listed}], {settings}}}}}\n"


def assert_refused(seen: Seen, told: tuple[int, str], client: Client) -> None:
    assert (seen.status, str(seen.code), seen.said, seen.done) == (*told, [], False)
    if client is not over_bare:
        assert (seen.whole, seen.headers["x-penstock-attempts"]) == (True, "1")


@pytest.mark.parametrize(("row", "client"), ROWS)
async def test_alone_the_client_gets_a_status(row: Row, client: Client, tmp_path: Path) -> None:
    async with row.replica() as url, served(routes(url), tmp_path) as gateway:
        seen = await client(gateway)
        assert_refused(seen, row.told, client)
        record = await gateway.record()
        assert gateway.gateway.figures()["penstock_streams_in_flight"] == {("m",): [0]}
    assert (record.attempts, record.replica) == (1, 0)
    if client is not over_bare and row.told[0] in (429, 503) and row.told[1] == "its_own":
        assert seen.headers["retry-after"] == "9"


@pytest.mark.parametrize(("row", "client"), ROWS)
async def test_beside_another_replica_the_client_notices_nothing(row: Row, client: Client, tmp_path: Path) -> None:
    async with (
        row.replica() as url,
        scripted_upstream(well) as good,
        served(routes(url, good.url), tmp_path) as gateway,
    ):
        seen = await client(gateway)
        if not row.elsewhere:
            assert_refused(seen, row.told, client)
            assert good.connections == 0
            return
        record = await gateway.record()
    assert (seen.status, "".join(seen.said), seen.errors, seen.done, seen.whole) == (200, "well", [], True, True)
    assert (record.attempts, record.replica, record.end_state) == (2, 1, "completed")
    if client is not over_bare:
        assert (seen.headers["x-penstock-attempts"], seen.headers["x-penstock-replica"]) == ("2", "1")


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_every_replica_out_of_reach_is_a_503_that_says_when_to_come_back(client: Client, tmp_path: Path) -> None:
    async with refusing() as one, refusing() as other:
        more = ", breaker: {failures: 1, open_for: 10s}"
        async with served(routes(one, other, more=more), tmp_path) as gateway:
            assert (await client(gateway)).code == "upstream_unreachable"
            seen = await client(gateway)
            assert (seen.status, seen.code) == (503, "no_replica_available")
            if client is not over_bare:
                assert 1 <= int(seen.headers["retry-after"]) <= 10
    [_, record] = [record for record in gateway.records if not record.is_session]
    assert (record.attempts, record.end_state) == (0, "shed")


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_every_replica_out_of_reach_goes_to_a_fallback(client: Client, tmp_path: Path) -> None:
    async with refusing() as bad, scripted_upstream(well) as good:
        text = routes(bad, more=", fallbacks: [small]").rstrip("}\n") + f'}}, small: "{good.url}"}}\n'
        async with served(text, tmp_path) as gateway:
            seen = await client(gateway)
            record = await gateway.record()
    assert ("".join(seen.said), seen.done, record.route, record.attempts) == ("well", True, "small", 2)
    if client is not over_bare:
        assert seen.headers["x-penstock-route"] == "small"


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_a_stale_kept_connection_is_replaced(client: Client, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        streams = b'"stream": true' in (await peer.request()).body
        whole = OK_EVENTS + chunk(content("well") + DONE) + LAST_CHUNK
        await peer.send(whole if streams else answer(200, WHOLE))
        await peer.request()  # read, and never answered

    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        for _ in range(2):
            seen = await client(gateway)
            assert (seen.said, seen.done, seen.errors) == (["well"], True, [])
        assert upstream.connections == 2
