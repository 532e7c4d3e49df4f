"""What goes wrong upstream in the middle of an answer: whole events so far, then one terminal error, no made-up end.
Nothing is tried again. In every dialect that streams; of Realtime, `test_realtime` tells."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.dialects import SSE, STREAMING, Dialect, ask
from tests.support.model_words import ITS_OWN, well
from tests.support.raw_client import ask as ask_raw
from tests.support.raw_client import chat, post
from tests.support.records import request_record
from tests.support.served import one_route, served
from tests.support.steps import Step, play
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, answering, chunk, event, saying, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.served import Served

each_dialect = pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)


@dataclass(frozen=True, slots=True)
class Row:
    """`steps`: the model server's. `code`: the terminal error's. `end_state`: the record's. `settings`: the route's."""

    steps: tuple[Step, ...]
    code: str = "upstream_truncated"
    end_state: str = "upstream_truncated"
    settings: str = ""


FAULTS = {
    "reset between events": Row(("head", "one", "reset")),
    "reset inside an event": Row(("head", "one", "half an event", "reset")),
    "reset inside a chunk": Row(("head", "one", "half a chunk", "reset")),
    "reset inside a character": Row(("head", "one", "half a character", "reset")),
    "end between events": Row(("head", "one", "close")),
    "end inside an event": Row(("head", "one", "half an event", "close")),
    "end inside a chunk": Row(("head", "one", "half a chunk", "close")),
    "end inside a character": Row(("head", "one", "half a character", "close")),
    "a body that ends without an end": Row(("head", "one", "last chunk")),
    "a body that ends inside an event": Row(("head", "one", "half an event", "last chunk")),
    "close without an end": Row(("head until close", "unframed one", "close")),
    "bad chunk size": Row(("head", "one", "bad chunk size", "close"), "upstream_invalid", "upstream_error"),
    "extra bytes": Row(("head", "extra bytes", "close"), "upstream_invalid", "upstream_error"),
    "stall": Row(("head", "one", "stall"), "upstream_idle", "upstream_idle", "timeouts: {idle: 50ms}"),
    "stall inside an event": Row(
        ("head", "one", "half an event", "stall"), "upstream_idle", "upstream_idle", "timeouts: {idle: 50ms}"
    ),
    "error event": Row(("head", "one", "an error", "last chunk"), "its_own", "upstream_error"),
    "error event, then a reset": Row(("head", "one", "an error", "reset"), "its_own", "upstream_error"),
}


def routes(*urls: str, settings: str = "") -> str:
    listed = ", ".join(f'"{url}"' for url in urls)
    all = ", ".join(
        filter(None, ["balance: round_robin", "health: none", "breaker: {failures: 1, open_for: 60s}", settings])
    )
    return f"server: {{port: 0}}\nroutes: {{m: {{replicas: [{listed}], {all}}}}}\n"


def breakers(gateway: Served) -> list[float]:
    """0: closed, 2: open."""
    return [value for [value] in gateway.gateway.figures()["penstock_breaker_state"].values()]


@pytest.mark.parametrize("fault", FAULTS)
@each_dialect
async def test_whole_events_so_far_then_one_terminal_error(fault: str, dialect: Dialect, tmp_path: Path) -> None:
    row = FAULTS[fault]
    async with (
        scripted_upstream(play(dialect.words, row.steps)) as bad,
        scripted_upstream(well(dialect.words)) as other,
        served(routes(bad.url, other.url, settings=row.settings), tmp_path) as gateway,
    ):
        seen = await ask(gateway, dialect)
        record = await request_record(gateway)
        assert breakers(gateway) == [2, 0]
        assert other.connections == 0
    assert (seen.said, seen.done, seen.whole) == (["one"], False, True)  # never a made-up end
    assert seen.error["message"]
    assert "127.0.0.1" not in seen.error["message"]
    if "code" in dialect.tells:
        assert seen.code == row.code
    if row.code == "its_own":
        assert seen.error["message"] == "mine"
    assert (record.end_state, record.attempts) == (row.end_state, 1)


async def test_an_answer_that_takes_too_long_in_all_is_ended_in_every_dialect(tmp_path: Path) -> None:
    """All dialects at once: the first event must have come long before."""

    async def waits(dialect: Dialect, folder: Path) -> None:
        folder.mkdir()
        async with (
            scripted_upstream(play(dialect.words, ("head", "one", "stall"))) as slow,
            served(routes(slow.url, settings="timeouts: {total: 1s}"), folder) as gateway,
        ):
            seen = await ask(gateway, dialect)
            record = await request_record(gateway)
            assert breakers(gateway) == [0]  # it may be the client that wants much
        assert (seen.said, seen.done, len(seen.errors)) == (["one"], False, 1)
        assert "code" not in dialect.tells or seen.code == "upstream_timeout"
        assert record.end_state == "upstream_error"

    async with asyncio.TaskGroup() as waiting:
        for number, dialect in enumerate(STREAMING):
            waiting.create_task(waits(dialect, tmp_path / str(number)))


async def test_an_error_event_passes_as_it_is(tmp_path: Path) -> None:
    script = play(SSE.words, FAULTS["error event"].steps)
    async with scripted_upstream(script) as bad, served(routes(bad.url), tmp_path) as gateway:
        assert (await ask(gateway, SSE)).error == ITS_OWN


@pytest.mark.parametrize("end", ["last chunk", "close"])
async def test_what_no_protocol_is_known_of_is_complete_when_its_body_is(end: str, tmp_path: Path) -> None:
    """Else the chunked body ends without its last chunk, and that is all that can be said."""
    said = event(b"one")
    script = answering(OK_EVENTS, chunk(said), LAST_CHUNK) if end == "last chunk" else saying(OK_EVENTS, chunk(said))
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        answer = await ask_raw(gateway.port, post("/v1/other", chat()))
        record = await request_record(gateway)
    assert (answer.body, answer.whole) == (said, end == "last chunk")
    assert record.end_state == ("completed" if end == "last chunk" else "upstream_truncated")


@each_dialect
async def test_what_happens_after_the_protocols_own_end_is_no_fault(dialect: Dialect, tmp_path: Path) -> None:
    script = play(dialect.words, ("head", "one", "the end", "reset"))
    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        seen = await ask(gateway, dialect)
        record = await request_record(gateway)
        assert (seen.said, seen.errors, seen.done) == (["one"], [], True)
        assert (record.end_state, breakers(gateway)) == ("completed", [0])


@each_dialect
async def test_an_event_that_is_not_json_is_dropped_and_counted(dialect: Dialect, tmp_path: Path) -> None:
    script = play(dialect.words, ("head", "no JSON", "one", "no JSON", "two", "the end", "last chunk"))
    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        seen = await ask(gateway, dialect)
        await request_record(gateway)
        dropped = gateway.gateway.figures()["penstock_malformed_events_total"]
    assert (seen.said, seen.errors, seen.done, seen.whole) == (["one", "two"], [], True, True)
    assert dropped == {("m",): [4]}


NOT_UTF_8 = b"\xff\xc3"


@each_dialect
async def test_bytes_that_are_no_utf_8_pass_or_are_escaped_and_the_client_goes_on(
    dialect: Dialect, tmp_path: Path
) -> None:
    raw = chunk(dialect.words.content("AB").replace(b"AB", b"A" + NOT_UTF_8 + b"B"))
    script = play(dialect.words, ("head", "one", raw, "two", "the end", "last chunk"))
    async with scripted_upstream(script) as upstream, served(routes(upstream.url), tmp_path) as gateway:
        seen = await ask(gateway, dialect)
    shown = [] if dialect.is_socket else ["A\ufffd\ufffdB"]
    assert (seen.said, seen.errors, seen.done) == (["one", *shown, "two"], [], True)
    assert len(seen.raw) == (1 if dialect.is_socket else 0)
    assert all(r"A\xff\xc3B" in raw for raw in seen.raw)
