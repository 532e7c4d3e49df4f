"""Active probes: what they must say how often before a replica is down, or up again."""

from __future__ import annotations

from random import Random

import pytest

from proxy.routing.health_check import LEAST_PAUSE, Health, HealthRules, is_well

RULES = HealthRules(fall=3, rise=2)


def said(health: Health, probes: str) -> str:
    """What `up` is after each probe: `+` passes, `-` fails; u for up, d for down."""
    told = ""
    for probe in probes:
        _ = health.passed() if probe == "+" else health.failed()
        told += "u" if health.up else "d"
    return told


def test_before_the_first_probe_it_is_up() -> None:
    assert Health(RULES).up


@pytest.mark.parametrize(
    ("probes", "told"),
    [
        ("---", "uud"),
        ("--+---", "uuuuud"),
        ("---++", "uuddu"),
        ("---+-++", "uuddddu"),
        ("----+", "uuddd"),
        ("---++--+---", "uudduuuuuud"),
    ],
)
def test_fall_and_rise_count_in_a_row(probes: str, told: str) -> None:
    assert said(Health(RULES), probes) == told


def test_only_the_probe_that_turns_it_says_so() -> None:
    health = Health(RULES)
    assert [health.failed() for _ in range(4)] == [False, False, True, False]
    assert [health.passed() for _ in range(3)] == [False, True, False]


def test_probes_drift_apart_and_none_comes_late() -> None:
    rng = Random(1)
    pauses = [HealthRules(every_s=5.0).pause_s(rng) for _ in range(200)]
    assert min(pauses) >= LEAST_PAUSE * 5.0
    assert max(pauses) <= 5.0
    assert len(set(pauses)) > 100


@pytest.mark.parametrize(
    ("status", "well"), [(200, True), (204, True), (401, True), (404, True), (500, False), (503, False)]
)
def test_a_server_that_does_not_know_the_path_lives(status: int, well: bool) -> None:
    assert is_well(status) is well
