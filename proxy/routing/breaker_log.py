"""What the log says of a replica's breaker: a line when it opens, one when it closes. Health checks have their own."""

from __future__ import annotations

import logging

from proxy.config.units import format_duration
from proxy.routing.breaker import Breaker

logger = logging.getLogger("penstock")


class BreakerLog:
    """Speaks of one replica, by its route's name and its index: neither address nor error is told."""

    __slots__ = ("_name",)

    def __init__(self, route: str, replica: int) -> None:
        self._name = f'route "{route}": replica {replica}'

    def opened(self, breaker: Breaker) -> None:
        for_s = format_duration(breaker.open_for_s())
        if breaker.reopened:
            logger.warning("%s is out for %s more: it failed again", self._name, for_s)
        else:
            rules = breaker.rules
            within = format_duration(rules.within_s)
            failures = "1 failure" if rules.failures == 1 else f"{rules.failures} failures within {within}"
            logger.warning("%s is out for %s: %s", self._name, for_s, failures)

    def closed(self) -> None:
        logger.info("%s is back", self._name)
