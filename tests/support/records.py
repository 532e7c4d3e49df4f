"""The records of requests, sessions left aside, and figures of one route: what a gateway tells of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.support.served import PATIENCE_S, Served

if TYPE_CHECKING:
    from proxy.telemetry.record import RequestRecord


async def request_record(gateway: Served, number: int = 0) -> RequestRecord:
    """The `number`th finished request's record, as soon as there is one; a WebSocket session's is none."""
    await until(lambda: len(_requests(gateway)) > number)
    return _requests(gateway)[number]


def in_flight(gateway: Served) -> float:
    """How many requests are under way, of all routes."""
    return sum(value for [value] in gateway.gateway.figures()["penstock_streams_in_flight"].values())


def queued(gateway: Served, route: str = "m") -> float:
    """How many wait in the route's queue."""
    [count] = gateway.gateway.figures()["penstock_queue_depth"][(route,)]
    return count


async def until(holds: Callable[[], bool]) -> None:
    """Wait until this is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.001)


def _requests(gateway: Served) -> list[RequestRecord]:
    return [record for record in gateway.records if not record.is_session]
