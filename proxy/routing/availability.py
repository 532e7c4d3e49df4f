"""Which replicas of a route may be asked, and what a client is told when none may."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxy.errors import NoReplica
from proxy.routing.breaker import State
from proxy.routing.replica import Replica

UNKNOWN_S = 5.0
"""What a client is told to wait for replicas that are down: nobody knows."""


def available(replicas: Sequence[Replica], now: float) -> Sequence[Replica]:
    """Those that may be asked, in the file's order; ones that just said 429 only where there are no others."""
    admitting = [replica for replica in replicas if replica.standing.available(now)]
    rested = [replica for replica in admitting if replica.standing.rests_until <= now]
    return rested or admitting


def unavailable(route: str, replicas: Sequence[Replica], now: float) -> NoReplica:
    """The 503 for a route of which no replica may be asked: how many are down or open, and when to come back.

    `route "chat": no replica available (2 open, 1 down); retry after 4 s`
    """
    down = [replica for replica in replicas if not replica.standing.up()]
    held = [replica for replica in replicas if replica not in down and not replica.standing.available(now)]
    probed = sum(1 for replica in held if replica.standing.breaker_state(now) is State.HALF_OPEN)
    counts = ((len(held) - probed, "open"), (probed, "half-open"), (len(down), "down"))
    told = ", ".join(f"{count} {word}" for count, word in counts if count)
    retry_at = (replica.standing.breaker.retry_at() for replica in held if replica.standing.breaker is not None)
    wait_s = float(max(1, math.ceil(min(retry_at, default=now + UNKNOWN_S) - now)))
    return NoReplica(
        f'route "{route}": no replica available ({told or "none left to try"}); retry after {wait_s:.0f} s',
        retry_after_s=wait_s,
    )
