"""Figures as text, read by Prometheus' own parser."""

from __future__ import annotations

import pytest

from proxy.telemetry.exposition import CONTENT_TYPE, exposition
from proxy.telemetry.metrics import Family, Figures
from tests.support.prometheus import read

COUNTER = Family("c_total", "counter", "Counted.", ("route", "kind"))
GAUGE = Family("g_seconds", "gauge", "Now.")
HISTOGRAM = Family("h_seconds", "histogram", "How long.", ("route",), (0.005, 1, 2.5))


def test_the_page_line_by_line() -> None:
    figures: Figures = {
        "h_seconds": {("a",): [2, 0, 1, 1, 9.25]},
        "g_seconds": {(): [0.25]},
        "c_total": {("b", "x"): [2], ("a", "y"): [1]},
    }
    assert exposition((COUNTER, GAUGE, HISTOGRAM), figures).splitlines() == [
        "# HELP c_total Counted.",
        "# TYPE c_total counter",
        'c_total{route="a",kind="y"} 1',
        'c_total{route="b",kind="x"} 2',
        "# HELP g_seconds Now.",
        "# TYPE g_seconds gauge",
        "g_seconds 0.25",
        "# HELP h_seconds How long.",
        "# TYPE h_seconds histogram",
        'h_seconds_bucket{route="a",le="0.005"} 2',
        'h_seconds_bucket{route="a",le="1"} 2',
        'h_seconds_bucket{route="a",le="2.5"} 3',
        'h_seconds_bucket{route="a",le="+Inf"} 4',
        'h_seconds_sum{route="a"} 9.25',
        'h_seconds_count{route="a"} 4',
    ]


def test_the_parser_reads_the_same() -> None:
    page = read(exposition((HISTOGRAM,), {"h_seconds": {("a",): [2, 0, 1, 1, 9.25]}}))
    assert (page.kinds, page.helps) == ({"h_seconds": "histogram"}, {"h_seconds": "How long."})
    assert [page.get("h_seconds_bucket", route="a", le=bound) for bound in ("0.005", "1", "2.5", "+Inf")] == [
        2,
        2,
        3,
        4,
    ]
    assert (page.get("h_seconds_sum", route="a"), page.get("h_seconds_count", route="a")) == (9.25, 4)


@pytest.mark.parametrize(
    "name", ['say "hi"', "back\\slash", "two\nlines", "\\n", "a{b}", "grün 模型", "x,y=1", '"', "\\"]
)
def test_a_label_may_be_any_text(name: str) -> None:
    page = read(exposition((COUNTER,), {"c_total": {(name, "x"): [1]}}))
    assert page.get("c_total", route=name, kind="x") == 1


def test_a_help_may_be_any_text() -> None:
    family = Family("g", "gauge", 'one\ntwo \\ "three"')
    assert read(exposition((family,), {})).helps == {"g": family.help}


@pytest.mark.parametrize("value", [0, 1, 12345678901234567, 1e-07, 0.1, 1e300])
def test_a_number_is_told_as_it_is(value: float) -> None:
    assert read(exposition((GAUGE,), {"g_seconds": {(): [value]}})).get("g_seconds") == pytest.approx(value, rel=1e-15)


def test_a_family_with_nothing_to_tell_is_named() -> None:
    text = exposition((COUNTER,), {})
    assert read(text).kinds == {"c": "counter"}
    assert not read(text).samples


def test_the_format_is_said_with_its_version() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
