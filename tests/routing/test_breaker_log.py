"""What the log says when a breaker turns: once each time, by route and index."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from proxy.routing.breaker import BreakerRules
from proxy.routing.breaker_log import BreakerLog
from proxy.routing.failure_kind import FailureKind
from proxy.routing.standing import Standing, Visit
from tests.support.dispatching import replicated

if TYPE_CHECKING:
    from pathlib import Path

RULES = BreakerRules(failures=5, within_s=30.0, open_for_s=10.0)


def visited(standing: Standing, now: float, *, well: bool = False) -> None:
    visit = Visit(standing, now)
    if well:
        visit.content(now)
    else:
        visit.failed(FailureKind.BROKEN, now)
    visit.over()


@pytest.fixture
def standing(caplog: pytest.LogCaptureFixture) -> Standing:
    caplog.set_level(logging.INFO, "penstock")
    standing = Standing(RULES)
    standing.log = BreakerLog("chat", 1)
    return standing


def test_it_says_once_that_a_replica_is_out_and_once_that_it_is_back(
    standing: Standing, caplog: pytest.LogCaptureFixture
) -> None:
    late = [Visit(standing, 99.0) for _ in range(3)]
    for _ in range(5):
        visited(standing, 100.0)
    for visit in late:  # they were under way when it opened
        visit.failed(FailureKind.BROKEN, 101.0)
    visited(standing, 110.0, well=True)
    visited(standing, 111.0, well=True)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", 'route "chat": replica 1 is out for 10s: 5 failures within 30s'),
        ("INFO", 'route "chat": replica 1 is back'),
    ]


def test_it_says_when_a_replica_stays_out(standing: Standing, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        visited(standing, 100.0)
    visited(standing, 110.0)
    visited(standing, 130.0, well=True)
    assert caplog.messages[1:] == [
        'route "chat": replica 1 is out for 20s more: it failed again',
        'route "chat": replica 1 is back',
    ]


def test_a_probe_that_is_answered_with_a_429_closes_it_too(
    standing: Standing, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        visited(standing, 100.0)
    Visit(standing, 110.0).failed(FailureKind.TOO_MANY, 110.0)
    assert caplog.messages[1:] == ['route "chat": replica 1 is back']


def test_a_table_gives_its_replicas_a_log_that_names_no_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://canary:9"
    route = replicated(tmp_path, "http://127.0.0.1:9", url, settings=", breaker: {failures: 1, open_for: 250ms}")
    visited(route.replicas[1].standing, 100.0)
    assert caplog.messages == ['route "chat": replica 1 is out for 250ms: 1 failure']
