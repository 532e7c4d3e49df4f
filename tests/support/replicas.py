"""Replicas and requests for tests of routing, without a file and without a socket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from proxy.request import ProxyRequest, RequestBody
from proxy.routing.breaker import BreakerRules
from proxy.routing.facts import RequestFacts
from proxy.routing.failure_kind import FailureKind
from proxy.routing.health_check import HealthRules
from proxy.routing.replica import Origin, Replica
from proxy.routing.standing import Standing, Visit

ONE_FAILURE = BreakerRules(failures=1, within_s=30.0, open_for_s=10.0)


def replicas(count: int, *, weights: Sequence[int] = (), breaker: BreakerRules | None = ONE_FAILURE) -> list[Replica]:
    """`http://gpu-0:8000` and so on, up and idle; any failure that counts opens their breakers."""
    return [
        Replica(
            index,
            Origin("http", f"gpu-{index}", 8000),
            "",
            weight=weight,
            standing=Standing(breaker, HealthRules(fall=1, rise=1)),
        )
        for index, weight in enumerate(weights or [1] * count)
    ]


def busy(there: Sequence[Replica], *in_flight: int) -> Sequence[Replica]:
    """The same, with so much in flight at each."""
    for replica, count in zip(there, in_flight, strict=True):
        replica.standing.in_flight = count
    return there


def fail(replica: Replica, kind: FailureKind, now: float, retry_after_s: float | None = None) -> None:
    """One exchange at it fails."""
    visit = Visit(replica.standing, now)
    visit.failed(kind, now, retry_after_s)
    visit.over()


def facts(*headers: tuple[str, str], key: str | None = None, **members: Any) -> RequestFacts:
    """A request with these headers, key and members of its body."""
    raw = json.dumps({"model": "m", **members}).encode()
    return RequestFacts(ProxyRequest("/v1/chat/completions", "", headers, (), RequestBody.parse(raw), "r-1"), key)
