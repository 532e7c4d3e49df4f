"""What goes wrong upstream before the first content event: alone, the client gets a status that says so; beside another
replica it gets that one's answer and notices nothing. In every dialect but Realtime, which is `test_realtime`'s."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.bad_replicas import BadReplica, deaf, nameless, playing, refusing, without_tls
from tests.support.clients import Seen
from tests.support.dialects import DIALECTS, Dialect, ask
from tests.support.model_words import ERROR_BODY, WELL, Words, well
from tests.support.records import in_flight, request_record
from tests.support.served import Served, served
from tests.support.steps import Step, play
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, Peer, answer, chunk, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

UNREACHABLE, INVALID, TRUNCATED, SILENT = (
    (502, "upstream_unreachable"),
    (502, "upstream_invalid"),
    (502, "upstream_truncated"),
    (504, "first_token_timeout"),
)
SOON = "timeouts: {first_token: 80ms}"
LATER = "timeouts: {connect: 1s, first_token: 1s}"
"""Time enough for the replica beside a silent one, on any machine."""


@dataclass(frozen=True, slots=True)
class Row:
    """`replica`: a bad address, or the steps of a model server. `told`: the status and the code that a client gets
    where there is no other replica. `elsewhere`: another one is asked. `streams`: only a stream can fail so. `settings`
    are the route's."""

    replica: BadReplica | tuple[Step, ...]
    told: tuple[int, str]
    elsewhere: bool = True
    streams: bool = False
    settings: str = ""

    def bad(self, words: Words) -> BadReplica:
        return self.replica if callable(self.replica) else playing(play(words, self.replica))


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b""])


def refused(status: int, *headers: bytes) -> tuple[bytes]:
    return (answer(status, ERROR_BODY, *headers),)


SILENCE = {
    "connect timeout": Row(deaf, UNREACHABLE, settings="timeouts: {connect: 80ms}"),
    "no head": Row(("stall",), SILENT, settings=SOON),
    "no first event": Row(("head", "stall"), SILENT, settings=SOON),
    "no body": Row((head(b"Content-Length: 9"), "stall"), SILENT, settings=SOON),
    "only comments": Row(("head", "a comment", "stall"), SILENT, settings=SOON),
}
FAULTS = {
    "refused": Row(refusing, UNREACHABLE),
    "no such name": Row(nameless, UNREACHABLE),
    "no TLS": Row(without_tls, UNREACHABLE),
    "accepts and closes": Row(("close",), UNREACHABLE),
    "accepts and resets": Row(("reset",), UNREACHABLE),
    "closes inside its head": Row((b"HTTP/1.1 200 OK\r\nConte", "close"), UNREACHABLE),
    "500": Row(refused(500), (500, "its_own")),
    "502": Row(refused(502), (502, "its_own")),
    "503": Row(refused(503, b"Retry-After: 9"), (503, "its_own")),
    "504": Row(refused(504), (504, "its_own")),
    "429": Row(refused(429, b"Retry-After: 9"), (429, "its_own")),
    "400": Row(refused(400), (400, "its_own"), elsewhere=False),
    "401": Row(refused(401), (401, "its_own"), elsewhere=False),
    "403": Row(refused(403), (403, "its_own"), elsewhere=False),
    "404": Row(refused(404), (404, "its_own"), elsewhere=False),
    "422": Row(refused(422), (422, "its_own"), elsewhere=False),
    "redirect": Row((answer(302, b"", b"Location: http://127.0.0.1:9/"), "close"), INVALID, elsewhere=False),
    "101 nobody asked for": Row(
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "close"), INVALID, elsewhere=False
    ),
    "garbage status line": Row((b"NOPE/9 what\r\n\r\n", "close"), INVALID, elsewhere=False),
    "oversized head": Row((head(b"X-Large: " + b"x" * 70_000), "close"), INVALID, elsewhere=False),
    "too many headers": Row((head(*[b"X-H: 1"] * 200), "close"), INVALID, elsewhere=False),
    "length and chunked": Row(
        (head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", "close"), INVALID, elsewhere=False
    ),
    "gzip": Row((head(b"Content-Encoding: gzip", b"Content-Length: 0"), "close"), INVALID, elsewhere=False),
    "bad chunk size": Row(("head", "bad chunk size", "close"), INVALID, elsewhere=False),
    "extra bytes": Row(("head", b"3\r\nda:XX", "close"), INVALID, elsewhere=False),
    "half a body": Row((answer(200, WELL)[:-5], "close"), TRUNCATED),
    "reset inside a body": Row((answer(200, WELL)[:-5], "reset"), TRUNCATED),
    "reset after the preamble": Row(("head", "preamble", "reset"), TRUNCATED, streams=True),
    "reset inside an event": Row(("head", "half an event", "reset"), TRUNCATED, streams=True),
    "reset inside a chunk": Row(("head", "half a chunk", "reset"), TRUNCATED, streams=True),
    "reset inside a character": Row(("head", "half a character", "reset"), TRUNCATED, streams=True),
    "end after the preamble": Row(("head", "preamble", "close"), TRUNCATED, streams=True),
    "end inside an event": Row(("head", "half an event", "close"), TRUNCATED, streams=True),
    "end inside a chunk": Row(("head", "half a chunk", "close"), TRUNCATED, streams=True),
    "end inside a character": Row(("head", "half a character", "close"), TRUNCATED, streams=True),
    "a body that ends without an end": Row(("head", "preamble", "last chunk"), TRUNCATED, streams=True),
    "close without an end": Row(("head until close", "unframed preamble", "close"), TRUNCATED, streams=True),
    "error event": Row(("head", "preamble", "an error", "last chunk"), (502, "its_own"), streams=True),
    "error event with a status": Row(("head", "an error 503", "last chunk"), (503, "503"), streams=True),
    "error body under 200": Row((answer(200, ERROR_BODY),), (502, "its_own"), streams=True),
}


def routes(*urls: str, settings: str = "") -> str:
    """A configuration with the route `m` on these replicas."""
    return "server: {port: 0}\nroutes:\n" + route("m", *urls, settings=settings)


def route(name: str, *urls: str, settings: str = "") -> str:
    """One more route; its replicas are asked in turn from the first on, each of them once."""
    listed = ", ".join(f'"{url}"' for url in urls)
    retry = f"retry: {{attempts: {len(urls)}}}"
    all = ", ".join(filter(None, ["balance: round_robin", "health: none", retry, settings]))
    return f"  {name}: {{replicas: [{listed}], {all}}}\n"


def cases(faults: dict[str, Row]) -> list[object]:
    return [
        pytest.param(row, dialect, id=f"{name}, {dialect.name}")
        for name, row in faults.items()
        for dialect in DIALECTS
        if dialect.streams or not row.streams
    ]


def assert_refused(seen: Seen, row: Row, dialect: Dialect) -> None:
    status, code = row.told
    assert (seen.said, seen.done, seen.whole) == ([], False, True)
    assert seen.error["message"]
    assert "127.0.0.1" not in seen.error["message"]
    if "status" in dialect.tells:
        assert seen.status == status
    if "code" in dialect.tells:
        assert str(seen.code) == code
    if code == "its_own":
        assert seen.error["message"] == "mine"
    if "retry" in dialect.tells:
        assert seen.retry_after_s == (9 if code == "its_own" and status in (429, 503) else None)
    if "headers" in dialect.tells:
        assert (seen.headers["x-penstock-attempts"], seen.headers["x-penstock-replica"]) == ("1", "0")


async def assert_recorded(gateway: Served) -> None:
    """The first request failed at the first replica, and left nothing behind."""
    record = await request_record(gateway, 0)
    assert (record.attempts, record.replica) == (1, 0)
    assert record.end_state not in (None, "completed", "client_closed", "error")
    assert in_flight(gateway) == 0


async def assert_answered_elsewhere(seen: Seen, gateway: Served, dialect: Dialect, number: int) -> None:
    assert (seen.status, "".join(seen.said), seen.errors, seen.done, seen.whole) == (200, "well", [], True, True)
    record = await request_record(gateway, number)
    assert (record.attempts, record.replica, record.end_state) == (2, 1, "completed")
    if "headers" in dialect.tells:
        assert (seen.headers["x-penstock-attempts"], seen.headers["x-penstock-replica"]) == ("2", "1")


@pytest.mark.parametrize(("row", "dialect"), cases(FAULTS))
async def test_a_fault_is_told_and_not_noticed_beside_another_replica(
    row: Row, dialect: Dialect, tmp_path: Path
) -> None:
    async with (
        row.bad(dialect.words)() as url,
        scripted_upstream(well(dialect.words)) as good,
        served(routes(url) + route("pair", url, good.url), tmp_path) as gateway,
    ):
        assert_refused(await ask(gateway, dialect), row, dialect)
        await assert_recorded(gateway)
        seen = await ask(gateway, dialect, "pair")
        if row.elsewhere:
            await assert_answered_elsewhere(seen, gateway, dialect, 1)
        else:
            assert_refused(seen, row, dialect)
            assert good.connections == 0


@pytest.mark.parametrize(("row", "dialect"), cases(SILENCE))
async def test_silence_is_told_in_time(row: Row, dialect: Dialect, tmp_path: Path) -> None:
    async with row.bad(dialect.words)() as url, served(routes(url, settings=row.settings), tmp_path) as gateway:
        assert_refused(await ask(gateway, dialect), row, dialect)
        await assert_recorded(gateway)


@pytest.mark.parametrize("fault", SILENCE)
async def test_beside_a_silent_replica_the_client_only_waits(fault: str, tmp_path: Path) -> None:
    """All dialects at once: each has to wait."""

    async def waits(dialect: Dialect, folder: Path) -> None:
        folder.mkdir()
        async with (
            SILENCE[fault].bad(dialect.words)() as url,
            scripted_upstream(well(dialect.words)) as good,
            served(routes(url, good.url, settings=LATER), folder) as gateway,
        ):
            await assert_answered_elsewhere(await ask(gateway, dialect), gateway, dialect, 0)

    async with asyncio.TaskGroup() as waiting:
        for number, dialect in enumerate(DIALECTS):
            waiting.create_task(waits(dialect, tmp_path / str(number)))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_every_replica_down_is_a_503_that_says_when_to_come_back(dialect: Dialect, tmp_path: Path) -> None:
    async with refusing() as one, refusing() as other:
        settings = "breaker: {failures: 1, open_for: 10s}"
        async with served(routes(one, other, settings=settings), tmp_path) as gateway:
            assert (await ask(gateway, dialect)).error["message"]
            seen = await ask(gateway, dialect)
    assert seen.error["message"]
    if "status" in dialect.tells:
        assert seen.status == 503
    if "code" in dialect.tells:
        assert seen.code == "no_replica_available"
    if "retry" in dialect.tells:
        assert 0 < (seen.retry_after_s or 0) <= 10
    record = await request_record(gateway, 1)
    assert (record.attempts, record.end_state) == (0, "shed")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_every_replica_down_goes_to_a_fallback(dialect: Dialect, tmp_path: Path) -> None:
    async with refusing() as bad, scripted_upstream(well(dialect.words)) as good:
        async with served(routes(bad, settings="fallbacks: [small]") + route("small", good.url), tmp_path) as gateway:
            seen = await ask(gateway, dialect)
            record = await request_record(gateway)
    assert ("".join(seen.said), seen.done, record.route, record.attempts) == ("well", True, "small", 2)
    if "headers" in dialect.tells:
        assert seen.headers["x-penstock-route"] == "small"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_a_stale_kept_connection_is_replaced(dialect: Dialect, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        words = dialect.words
        whole = OK_EVENTS + chunk(words.content("well") + words.end) + LAST_CHUNK
        await peer.send(whole if dialect.streams else answer(200, WELL))
        await peer.request()  # read, and never answered

    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        for _ in range(2):
            seen = await ask(gateway, dialect)
            assert (seen.said, seen.done, seen.errors) == (["well"], True, [])
        assert upstream.connections == 2
