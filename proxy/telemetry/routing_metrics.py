"""What the metrics show of routes and replicas as they stand at this moment: queues, health, breakers."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.routing.table import Route
from proxy.telemetry.request_metrics import Metrics


def show_routes(metrics: Metrics, routes: Iterable[Route], now: float) -> None:
    """Set the gauges. `now`: seconds of the clock that the routes' policies are told."""
    for route in routes:
        metrics.queue_depth.of(route.name).value = route.limiter.waiting
        for replica in route.replicas:
            labels = (route.name, str(replica.index))
            metrics.replica_up.of(*labels).value = int(replica.standing.up())
            metrics.breaker_state.of(*labels).value = int(replica.standing.breaker_state(now))
