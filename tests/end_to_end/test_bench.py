"""The benchmark runs: a tiny scenario through the real rig, against the real gateway, over HTTP and WebSocket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.rig.page import BEGIN, END, write_page
from scripts.rig.places import CHECKOUT, PAGE
from scripts.rig.results import Results, load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="the rig needs a C compiler"),
]

ROWS = ("direct", "naive", "gateway", "gateway-ws")
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
        assert (measured.values["right"], measured.values["wrong"], measured.values["cut"]) == (4, 0, 0)


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
    assert [bar.get("class") for bar in bars] == ["bar", "bar ours", "bar ours"]
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
    [(("--peers", "apache"), "apache"), (("--scenarios", "S9"), "S9"), (("--rounds", "0"), "rounds")],
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
