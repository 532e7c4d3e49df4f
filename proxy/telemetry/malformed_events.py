"""Events that were dropped since they could not be JSON objects: all are counted, and some are said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from proxy.routing.table import Route
from proxy.telemetry.request_metrics import Metrics

SAID_EVERY_S = 60.0

logger = logging.getLogger("penstock")


class MalformedEvents:
    """Counts them; says so once in `SAID_EVERY_S` and route, not once an event. `now` is any clock's seconds."""

    def __init__(self, metrics: Metrics, now: Callable[[], float] = monotonic) -> None:
        self._metrics = metrics
        self._now = now
        self._said: dict[str, float] = {}

    def dropped(self, route: Route) -> None:
        """An event of this route was."""
        self._metrics.malformed_events.of(route.name).value += 1
        now = self._now()
        if now - self._said.get(route.name, -SAID_EVERY_S) >= SAID_EVERY_S:
            self._said[route.name] = now
            logger.warning('route "%s": an event that is not a JSON object was dropped', route.name)
