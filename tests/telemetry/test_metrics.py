"""Instruments and their figures: what is counted where, and how the figures of several processes become one's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.metrics import (
    Family,
    Figures,
    Histogram,
    Together,
    from_json,
    histograms,
    merged,
    to_json,
    values,
    without_gauges,
)

COUNTER = Family("c_total", "counter", "Counted.", ("route",))
GAUGE = Family("g", "gauge", "Now.", ("route",))
HISTOGRAM = Family("h_seconds", "histogram", "How long.", ("route",), (0.1, 1))
FAMILIES = (COUNTER, GAUGE, HISTOGRAM)


def gauge(together: Together) -> Family:
    return Family("g", "gauge", "Now.", together=together)


def test_the_same_labels_are_the_same_metric() -> None:
    counter = values(COUNTER)
    counter.of("a").value += 1
    counter.of("a").value += 2
    counter.of("b").value += 4
    assert counter.figures() == {("a",): [3], ("b",): [4]}


def test_labels_of_another_number_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="c_total"):
        values(COUNTER).of("a", "b")


def test_a_metric_is_told_at_zero_once_it_was_asked_for() -> None:
    counter = values(COUNTER)
    assert counter.figures() == {}
    counter.of("a")
    assert counter.figures() == {("a",): [0]}


def test_what_is_forgotten_begins_anew() -> None:
    now = values(GAUGE)
    now.of("a").value = 3
    now.forget()
    assert now.figures() == {}
    assert now.of("a").value == 0


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0.0, [1, 0, 0]), (0.1, [1, 0, 0]), (0.100001, [0, 1, 0]), (1.0, [0, 1, 0]), (1.5, [0, 0, 1])],
)
def test_a_bucket_ends_with_its_bound(value: float, counts: list[int]) -> None:
    histogram = Histogram((0.1, 1))
    histogram.observe(value)
    assert histogram.figures() == [*counts, value]


def test_a_value_may_be_observed_many_times_at_once() -> None:
    histogram = Histogram((0.1, 1))
    histogram.observe(0.5, 10)
    histogram.observe(2)
    assert histogram.figures() == [0, 10, 1, 7.0]


def test_a_histogram_that_has_seen_nothing_is_not_told() -> None:
    durations = histograms(HISTOGRAM)
    durations.of("a")
    durations.of("b").observe(0.2)
    assert list(durations.figures()) == [("b",)]


# ---- several processes ----


def process(route: str, counted: int, now: float, seconds: float) -> Figures:
    counter, current, durations = values(COUNTER), values(GAUGE), histograms(HISTOGRAM)
    counter.of(route).value = counted
    current.of(route).value = now
    durations.of(route).observe(seconds)
    return {each.family.name: each.figures() for each in (counter, current, durations)}


def test_counters_histograms_and_gauges_add_up() -> None:
    together = merged(FAMILIES, [process("a", 3, 2, 0.05), process("a", 4, 5, 0.5), process("b", 1, 1, 0.5)])
    assert together == {
        "c_total": {("a",): [7], ("b",): [1]},
        "g": {("a",): [7], ("b",): [1]},
        "h_seconds": {("a",): [1, 1, 0, 0.55], ("b",): [0, 1, 0, 0.5]},
    }


@pytest.mark.parametrize(("together", "value"), [("sum", 6), ("max", 3), ("min", 1)])
def test_a_gauge_says_what_makes_one_of_several(together: Together, value: float) -> None:
    family = gauge(together)
    assert merged([family], [{"g": {(): [each]}} for each in (3, 1, 2)]) == {"g": {(): [value]}}


def test_a_process_that_knows_a_metric_less_changes_nothing() -> None:
    one = process("a", 3, 2, 0.05)
    assert merged(FAMILIES, [one, {}]) == one


def test_of_a_process_that_has_gone_stays_what_it_counted() -> None:
    left = without_gauges(FAMILIES, process("a", 3, 2, 0.05))
    assert left == {"c_total": {("a",): [3]}, "h_seconds": {("a",): [1, 0, 0, 0.05]}}
    assert without_gauges(FAMILIES, {}) == {"c_total": {}, "h_seconds": {}}


labels = st.lists(st.text(), max_size=2).map(tuple)
numbers = st.lists(st.integers(0, 2**53) | st.floats(0, 1e12), min_size=1, max_size=4)


@given(st.dictionaries(st.text(), st.dictionaries(labels, numbers)))
def test_figures_come_back_from_json_as_they_were(figures: Figures) -> None:
    assert from_json(json.loads(to_json(figures))) == figures
