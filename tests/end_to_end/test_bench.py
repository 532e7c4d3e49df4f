"""The benchmark runs: a tiny scenario through the real rig, against the real gateway, over HTTP and WebSocket, bare and
mux; and its clients notice what is wrong with a stream."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websocket_server
from websockets.typing import Subprotocol

from scripts.rig.clients import Clients, Seen, run_clients
from scripts.rig.page import BEGIN, END, write_page
from scripts.rig.peers import all_peers
from scripts.rig.places import CHECKOUT, PAGE
from scripts.rig.plan import plan
from scripts.rig.results import Results, load
from scripts.rig.scenarios import SCENARIOS
from tests.support.upstream import (
    DONE,
    LAST_CHUNK,
    OK_EVENTS,
    answer,
    answering_once,
    chunk,
    content,
    scripted_upstream,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="the rig needs a C compiler"),
]

ROWS = ("direct", "naive", "gateway", "gateway-ws", "gateway-mux")
WITHIN_S = 120


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command that scripts/bench runs, in the environment these tests run in."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.rig", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run's results."""
    out = tmp_path_factory.mktemp("bench")
    done = bench("--peers", ",".join(ROWS), "--scenarios", "S0,S5", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    return load(run / "results.json")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_stream_was_right_for_every_row(results: Results) -> None:
    assert results.failures == []
    for peer in ROWS:
        (measured,) = results.of(peer, "S0")
        assert measured.kinds == {}
        assert (measured.values["right"], measured.values["wrong"], measured.values["cut"]) == (8, 0, 0)


def test_programs_have_a_cpu_figure_and_a_start_and_the_direct_way_has_none(results: Results) -> None:
    for peer in ROWS:
        measured = peer != "direct"
        assert (results.figure(peer, "S0") is not None) == measured
        assert (results.figure(peer, "S5") is not None) == measured
    assert 0 < (results.figure("gateway", "S5") or 0) < 60


def test_the_tables_have_a_row_for_each_and_a_cell_in_each_column(run: Path) -> None:
    text = (run / "table.md").read_text()
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len(cells(table[0])) for table in tables] == [3, 12]
    for table in tables:
        assert {len(cells(line)) for line in table} == {len(cells(table[0]))}
    overview, detail = ([cells(line)[0] for line in table[2:]] for table in tables)
    assert overview == list(ROWS[1:])
    assert detail == list(ROWS)


def test_the_plot_has_a_bar_for_each_program(run: Path) -> None:
    drawing = ElementTree.parse(run / "plot.svg")
    bars = [shape for shape in drawing.iter("{http://www.w3.org/2000/svg}rect") if shape.get("class")]
    assert [bar.get("class") for bar in bars] == ["bar", *["bar ours"] * 3]
    assert all(float(bar.get("width", "0")) > 0 for bar in bars)


def test_nothing_of_this_machines_places_is_in_what_can_be_published(run: Path) -> None:
    for name in ("results.json", "table.md", "plot.svg"):
        text = (run / name).read_text()
        assert str(CHECKOUT) not in text
        assert str(run) not in text
        assert os.uname().nodename not in text.split()


def test_the_page_takes_a_runs_table_and_plot_and_keeps_its_own_words(
    run: Path, results: Results, tmp_path: Path
) -> None:
    page, plot = tmp_path / "performance.md", tmp_path / "performance.svg"
    page.write_text(PAGE.read_text())
    write_page(results, page, plot)
    once = page.read_text()
    write_page(results, page, plot)
    before, after = PAGE.read_text().split(BEGIN)[0], PAGE.read_text().split(END)[1]
    assert page.read_text() == once
    assert once.startswith(before)
    assert once.endswith(after)
    assert "(performance.svg)" in once
    assert (run / "table.md").read_text() in once
    assert plot.read_text() == (run / "plot.svg").read_text()


def test_an_earlier_run_is_shown_again(run: Path) -> None:
    shown = bench("--results", str(run / "results.json"))
    assert shown.returncode == 0
    assert shown.stdout.strip() == (run / "table.md").read_text().strip()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--peers", "apache"), "apache"),
        (("--install-peers", "apache"), "apache"),
        (("--scenarios", "S9"), "S9"),
        (("--rounds", "0"), "rounds"),
    ],
)
def test_what_does_not_exist_is_bad_usage(arguments: tuple[str, ...], named: str) -> None:
    refused = bench(*arguments)
    assert refused.returncode == 2
    assert named in refused.stderr
    assert "Traceback" not in refused.stderr


def test_results_are_json_that_others_can_read(run: Path) -> None:
    told = json.loads((run / "results.json").read_text())
    assert {"machine", "when", "rounds", "measurements", "failures"} == set(told)
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_a_run_of_all_peers_fits_into_five_minutes_and_takes_its_turns_in_rounds() -> None:
    peers = [peer for peer in all_peers().values() if peer.usual]
    usual = [scenario for scenario in SCENARIOS if scenario.usual]
    assert plan(peers, usual, None).seconds() < 300
    asked = plan(peers[:3], usual, 2)
    assert [(number, peer.name) for number, peer, _ in asked.turns()] == [
        (number, peer.name) for number in (0, 1) for peer in peers[:3]
    ]


def marked(*places: int) -> list[bytes]:
    """Events as the rig's model server sends them, with these numbers."""
    return [content(f"@{time.monotonic_ns():019}:{place:06}") for place in places]


async def seen_of(*pieces: bytes, events: int = 3) -> Seen:
    """What one client says of one answer that was to have so many events."""
    async with scripted_upstream(answering_once(*pieces)) as upstream:
        port = int(upstream.url.rpartition(":")[2])
        return await asyncio.to_thread(run_clients, Clients(1, 5, events, requests=1), port)


@pytest.mark.parametrize("cut_at", [None, 1, 70, 300])
async def test_clients_find_a_whole_stream_right_wherever_it_is_cut(cut_at: int | None) -> None:
    stream = b"".join(chunk(event) for event in [*marked(0, 1, 2), DONE]) + LAST_CHUNK
    pieces = (stream,) if cut_at is None else (stream[:cut_at], stream[cut_at:])
    seen = await seen_of(OK_EVENTS, *pieces)
    assert (seen.right, seen.kinds, seen.events) == (1, {}, 3)
    assert seen.event_us["p50"] >= 0


@pytest.mark.parametrize(
    ("events", "ending", "kind"),
    [
        pytest.param(marked(0, 2, 1), DONE, "events out of order", id="two events change places"),
        pytest.param(marked(0, 0, 1, 2), DONE, "events out of order", id="one comes twice"),
        pytest.param(marked(0, 2), DONE, "events out of order", id="one in the middle is missing"),
        pytest.param(marked(0, 1), DONE, "events missing", id="the last one is missing"),
        pytest.param(marked(0, 1, 2), b"data: {}\n\n", "no [DONE]", id="the end mark is missing"),
    ],
)
async def test_clients_name_what_is_wrong_with_a_stream(events: list[bytes], ending: bytes, kind: str) -> None:
    seen = await seen_of(OK_EVENTS, *map(chunk, [*events, ending]), LAST_CHUNK)
    assert (seen.right, seen.wrong, seen.kinds) == (0, 1, {kind: 1})


async def test_clients_notice_a_body_that_breaks_off_and_another_status() -> None:
    broken = await seen_of(OK_EVENTS, *map(chunk, [*marked(0, 1, 2), DONE]))
    assert (broken.right, broken.kinds) == (0, {"the server closed before the end": 1})
    refused = await seen_of(answer(503, b"{}"))
    assert (refused.right, refused.kinds) == (0, {"status 503": 1})


def mux_chunk(rid: str, place: int, seq: int) -> str:
    chunk = marked(place)[0].decode().strip().removeprefix("data: ")
    return f'{{"data":{{"chunk":{chunk},"stage_id":"{rid}"}},"type":"chat_completion_chunk","rid":"{rid}","seq":{seq}}}'


def mux_end(type: str, rid: str, seq: int) -> str:
    return f'{{"data":{{"stage_id":"{rid}"}},"type":"{type}","rid":"{rid}","seq":{seq}}}'


async def seen_over_mux(*frames: str, streams: int = 1, events: int = 2) -> Seen:
    """What so many clients of one socket say of these frames; then it is closed."""

    async def serve(socket: ServerConnection) -> None:
        assert json.loads(await socket.recv())["type"] == "init"
        await socket.send('{"type":"ready","v":1,"features":["ack","ndjson"]}')
        starts = [json.loads(await socket.recv()) for _ in range(streams)]
        assert [start["rid"] for start in starts] == [f"r{number}" for number in range(streams)]
        for frame in frames:
            await socket.send(frame)

    dialect = Subprotocol("llm-mux.v1")
    async with websocket_server(serve, "127.0.0.1", 0, subprotocols=[dialect], compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        asking = Clients(streams, 5, events, requests=streams)
        return await asyncio.to_thread(run_clients, asking, port, websocket="/v1/ws", mux=8)


async def test_streams_of_one_socket_are_told_apart() -> None:
    first, second = (
        [f'{{"type":"accepted","rid":"{rid}","status":200}}', *(mux_chunk(rid, at, at + 1) for at in range(2))]
        for rid in ("r0", "r1")
    )
    woven = [message for both in zip(first, second, strict=True) for message in both]
    joined = "\n".join(woven[:3])
    seen = await seen_over_mux(joined, *woven[3:], mux_end("done", "r1", 3), mux_end("done", "r0", 3), streams=2)
    assert (seen.right, seen.kinds, seen.events, seen.upgraded) == (2, {}, 4, 1)


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        pytest.param(
            [mux_chunk("r0", 0, 1), mux_chunk("r0", 1, 3), mux_end("done", "r0", 4)],
            "events out of order",
            id="a number was left out",
        ),
        pytest.param(
            [mux_chunk("r0", 1, 1), mux_chunk("r0", 0, 2), mux_end("done", "r0", 3)],
            "events out of order",
            id="two events change places",
        ),
        pytest.param([mux_chunk("r0", 0, 1), mux_end("done", "r0", 2)], "events missing", id="one is missing"),
        pytest.param([mux_chunk("r0", 0, 1), mux_end("error", "r0", 2)], "an error frame", id="it fails"),
        pytest.param([mux_chunk("r0", 0, 1), mux_end("cancel", "r0", 2)], "an unexpected frame", id="it is cancelled"),
        pytest.param([mux_chunk("r0", 0, 1)], "the server closed the WebSocket", id="its socket is lost"),
    ],
)
async def test_clients_name_what_is_wrong_with_a_stream_over_mux(messages: list[str], kind: str) -> None:
    seen = await seen_over_mux(*messages)
    assert (seen.right, seen.wrong, seen.kinds) == (0, 1, {kind: 1})
