"""Gauges of routes and replicas, as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.routing.failure_kind import FailureKind
from proxy.routing.table import Route
from proxy.telemetry.request_metrics import Metrics
from proxy.telemetry.routing_metrics import show_routes
from tests.support.dispatching import replicated
from tests.support.replicas import fail

if TYPE_CHECKING:
    from pathlib import Path


def shown(route: Route, now: float) -> dict[str, list[float]]:
    """queue_depth; up and breaker of each replica."""
    metrics = Metrics("1")
    metrics.know({"chat": len(route.replicas)})
    show_routes(metrics, [route], now)
    return {
        "queue": [metrics.queue_depth.of("chat").value],
        "up": [metrics.replica_up.of("chat", str(replica.index)).value for replica in route.replicas],
        "breaker": [metrics.breaker_state.of("chat", str(replica.index)).value for replica in route.replicas],
    }


SETTINGS = ", health: {fall: 1}, breaker: {failures: 1, open_for: 10s}, limits: {streams: 1}"


def test_a_route_at_rest(tmp_path: Path) -> None:
    route = replicated(tmp_path, "http://a", "http://b", settings=SETTINGS)
    assert shown(route, 0.0) == {"queue": [0], "up": [1, 1], "breaker": [0, 0]}


def test_what_has_failed_and_who_waits(tmp_path: Path) -> None:
    route = replicated(tmp_path, "http://a", "http://b", settings=SETTINGS)
    route.replicas[0].standing.probed(well=False, now=5.0)
    fail(route.replicas[1], FailureKind.SERVER_ERROR, 5.0)
    for _ in range(3):
        route.limiter.enter("k", 5.0)
    assert shown(route, 6.0) == {"queue": [2], "up": [0, 1], "breaker": [0, 2]}
    assert shown(route, 16.0)["breaker"] == [0, 1]


def test_what_has_no_breaker_and_no_health_check_is_well(tmp_path: Path) -> None:
    route = replicated(tmp_path, "http://a", settings=", health: none, breaker: none")
    assert shown(route, 0.0) == {"queue": [0], "up": [1], "breaker": [0]}
