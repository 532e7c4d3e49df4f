"""What goes wrong upstream in the middle of an answer: whole events so far, then one terminal error, no made-up end.
Nothing is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import Client, over_bare, over_sse
from tests.support.served import served
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    OK_EVENTS_UNTIL_CLOSE,
    Script,
    answering,
    chunk,
    content,
    event,
    saying,
    scripted_upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = {"sse": over_sse, "websocket": over_bare}
ONE = content("one")
UMLAUT = content("zwölf")
INSIDE = UMLAUT.index("ö".encode()) + 1
ITS_OWN = event(b'{"error":{"message":"mine","type":"t","param":null,"code":"its_own"}}')


@dataclass(frozen=True)
class Row:
    """`code`: the terminal error's. `end_state`: the record's. `counts`: whether it speaks against the replica."""

    script: Script
    code: str
    end_state: str = "upstream_truncated"
    counts: bool = True
    settings: str = ""


TRUNCATED = "upstream_truncated"
FAULTS = {
    "reset between events": Row(saying(OK_EVENTS, chunk(ONE), end="reset"), TRUNCATED),
    "reset inside an event": Row(saying(OK_EVENTS, chunk(ONE + ONE[:20]), end="reset"), TRUNCATED),
    "reset inside a chunk": Row(saying(OK_EVENTS, chunk(ONE) + chunk(ONE)[:20], end="reset"), TRUNCATED),
    "reset inside a character": Row(saying(OK_EVENTS, chunk(ONE + UMLAUT[:INSIDE]), end="reset"), TRUNCATED),
    "end between events": Row(saying(OK_EVENTS, chunk(ONE)), TRUNCATED),
    "end inside an event": Row(saying(OK_EVENTS, chunk(ONE + ONE[:20])), TRUNCATED),
    "end inside a chunk": Row(saying(OK_EVENTS, chunk(ONE) + chunk(ONE)[:20]), TRUNCATED),
    "end inside a character": Row(saying(OK_EVENTS, chunk(ONE + UMLAUT[:INSIDE])), TRUNCATED),
    "last chunk without an end": Row(saying(OK_EVENTS, chunk(ONE) + LAST_CHUNK), TRUNCATED),
    "close without an end": Row(saying(OK_EVENTS_UNTIL_CLOSE, ONE), TRUNCATED),
    "bad chunk size": Row(saying(OK_EVENTS, chunk(ONE) + b"zz\r\n"), "upstream_invalid", "upstream_error"),
    "extra bytes": Row(saying(OK_EVENTS, b"%x\r\n%bXX" % (len(ONE), ONE)), "upstream_invalid", "upstream_error"),
    "stall": Row(
        saying(OK_EVENTS, chunk(ONE), end="stall"),
        "upstream_idle",
        "upstream_idle",
        settings=", timeouts: {idle: 50ms}",
    ),
    "too long in all": Row(
        saying(OK_EVENTS, chunk(ONE), end="stall"),
        "upstream_timeout",
        "upstream_error",
        counts=False,
        settings=", timeouts: {total: 80ms}",
    ),
    "error event": Row(answering(OK_EVENTS, chunk(ONE), chunk(ITS_OWN), LAST_CHUNK), "its_own", "upstream_error"),
    "error event, then a reset": Row(
        saying(OK_EVENTS, chunk(ONE), chunk(ITS_OWN), end="reset"), "its_own", "upstream_error"
    ),
}
ROWS = [
    pytest.param(row, client, id=f"{name}, {how}") for name, row in FAULTS.items() for how, client in CLIENTS.items()
]


def routes(*urls: str, more: str = "") -> str:
    listed = ", ".join(f'"{url}"' for url in urls)
    settings = f"balance: round_robin, health: none, breaker: {{failures: 1, open_for: 60s}}{more}"
    return f"server: {{port: 0}}\nroutes: {{m: {{replicas: [{listed}], {settings}}}}}\n"


@pytest.mark.parametrize(("row", "client"), ROWS)
async def test_whole_events_so_far_then_one_terminal_error(row: Row, client: Client, tmp_path: Path) -> None:
    async with scripted_upstream(row.script) as bad, scripted_upstream(answering()) as other:
        async with served(routes(bad.url, other.url, more=row.settings), tmp_path) as gateway:
            seen = await client(gateway)
            record = await gateway.record()
            [breaker, _] = gateway.gateway.figures()["penstock_breaker_state"].values()
        assert other.connections == 0
    assert (seen.said, seen.code, seen.done, seen.whole) == (["one"], row.code, False, True)
    assert (record.end_state, record.attempts) == (row.end_state, 1)
    assert breaker == [2 if row.counts else 0]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_an_error_event_passes_as_it_is(client: Client, tmp_path: Path) -> None:
    async with scripted_upstream(FAULTS["error event"].script) as bad, served(routes(bad.url), tmp_path) as gateway:
        [error] = (await client(gateway)).errors
    assert error == {"message": "mine", "type": "t", "param": None, "code": "its_own"}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("end", [DONE, event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')])
async def test_what_happens_after_the_protocols_own_end_is_no_fault(end: bytes, client: Client, tmp_path: Path) -> None:
    script = saying(OK_EVENTS, chunk(ONE + end), end="reset")
    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        seen = await client(gateway)
        record = await gateway.record()
        [breaker] = gateway.gateway.figures()["penstock_breaker_state"].values()
    assert (seen.said, seen.errors, record.end_state, breaker) == (["one"], [], "completed", [0])


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_an_event_that_is_not_json_is_dropped_and_counted(client: Client, tmp_path: Path) -> None:
    raw = event(b"no JSON") + ONE + event(b"[half") + content("two") + DONE
    script = answering(OK_EVENTS, chunk(raw), LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        seen = await client(gateway)
        await gateway.record()
        [dropped] = gateway.gateway.figures()["penstock_malformed_events_total"].values()
    assert (seen.said, seen.errors, seen.done, dropped) == (["one", "two"], [], True, [2])


SENT = ONE + content("zwölf") + content("three") + DONE
LARGE = "x" * 10_000_000
SHAPES = {
    "as it is": ([chunk(SENT)], ["one", "zwölf", "three"]),
    "a byte a chunk": ([chunk(SENT[at : at + 1]) for at in range(len(SENT))], ["one", "zwölf", "three"]),
    "CRLF": ([chunk(SENT.replace(b"\n", b"\r\n"))], ["one", "zwölf", "three"]),
    "CR": ([chunk(SENT.replace(b"\n", b"\r"))], ["one", "zwölf", "three"]),
    "BOM": ([chunk(b"\xef\xbb\xbf" + SENT)], ["one", "zwölf", "three"]),
    "comments": ([chunk(SENT.replace(b"data: ", b": hm\ndata: "))], ["one", "zwölf", "three"]),
    "10 MB": ([chunk(content(LARGE) + DONE)], [LARGE]),
}


@pytest.mark.parametrize("client", [over_bare], ids=["websocket"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_events_are_the_same_however_they_are_sent(shape: str, client: Client, tmp_path: Path) -> None:
    pieces, said = SHAPES[shape]
    async with scripted_upstream(answering(OK_EVENTS, *pieces, LAST_CHUNK)) as upstream:
        async with served(routes(upstream.url), tmp_path) as gateway:
            seen = await client(gateway)
    assert (seen.said, seen.errors, seen.done) == (said, [], True)
