"""An average that forgets."""

from __future__ import annotations

import pytest

from proxy.routing.average import HALF_LIFE_S, SHARE, Average


def test_without_values_it_is_nothing() -> None:
    assert Average().value(100.0) == 0.0


def test_the_first_value_is_the_average() -> None:
    average = Average()
    average.add(0.8, 100.0)
    assert average.value(100.0) == 0.8


def test_a_value_that_follows_at_once_moves_it_by_its_share() -> None:
    average = Average()
    average.add(1.0, 100.0)
    average.add(2.0, 100.0)
    assert average.value(100.0) == pytest.approx(1.0 + SHARE)


def test_the_longer_ago_the_last_value_was_the_less_it_counts() -> None:
    soon, late = Average(), Average()
    for average, second in ((soon, 101.0), (late, 100.0 + 10 * HALF_LIFE_S)):
        average.add(30.0, 100.0)
        average.add(1.0, second)
    assert soon.value(101.0) > 15.0
    assert late.value(100.0 + 10 * HALF_LIFE_S) == pytest.approx(1.0, rel=0.03)


def test_silence_halves_it() -> None:
    average = Average()
    average.add(8.0, 100.0)
    assert average.value(100.0 + 2 * HALF_LIFE_S) == pytest.approx(2.0)


def test_a_clock_that_stands_still_or_goes_back_harms_nothing() -> None:
    average = Average()
    average.add(2.0, 100.0)
    average.add(4.0, 99.0)
    assert 2.0 < average.value(98.0) < 4.0
