"""Asking each replica whether it is there: `penstock check --probe`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from msgspec import Struct

from proxy.errors import UpstreamError
from proxy.routing.replica import Replica
from proxy.routing.table import Route
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.message import probing_message
from proxy.upstream.pool import Pool

PROBE_TIMEOUT_S = 5.0
MAX_LISTING_BYTES = 1 << 20


class ProbeResult(Struct, frozen=True):
    """What one replica said. `reachable` is whether requests can be sent to it; `finding` is for the operator."""

    route: str
    replica: int
    reachable: bool
    finding: str


async def probe(routes: Iterable[Route]) -> list[ProbeResult]:
    """Ask every replica for its models, all at once."""
    pool = Pool()
    try:
        asked = [_ask(pool, route, replica) for route in routes for replica in route.replicas]
        return list(await asyncio.gather(*asked))
    finally:
        await pool.close()


async def _ask(pool: Pool, route: Route, replica: Replica) -> ProbeResult:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reachable, finding = await _list_models(pool, route, replica)
    except UpstreamError as error:
        reachable, finding = False, error.message
    except TimeoutError:
        reachable, finding = False, f"no answer within {PROBE_TIMEOUT_S:g} s"
    return ProbeResult(route.name, replica.index, reachable, finding)


async def _list_models(pool: Pool, route: Route, replica: Replica) -> tuple[bool, str]:
    connection = await pool.connection(replica.origin, connect_timeout_s=route.timeouts.connect_s, fresh=True)
    listing = _Listing(connection)
    connection.send(probing_message(replica, "/v1/models"), listing)
    try:
        await listing.whole
    finally:
        listing.leave()
    if listing.status in (401, 403):
        return False, f"refuses the credentials ({listing.status})"
    if 300 <= listing.status < 400:
        return False, f"answers with a redirect, which is never followed ({listing.status})"
    if listing.status >= 500:
        return False, f"answers {listing.status}"
    names = listing.names()
    if route.upstream_model in names or not names or replica.origin.scheme == "demo":  # which answers to any name
        return True, f"answers {listing.status}"
    return True, f'answers, but does not list the model "{route.upstream_model}"'


class _Listing:
    """A connection's receiver that keeps the whole answer. `whole` is done when it is, or with its `UpstreamError`. The
    connection is closed at its end: a moment later it may serve another probe."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection: UpstreamConnection | None = connection
        self.status = 0
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._body = bytearray()

    def names(self) -> list[str]:
        """The ids of the models it lists; empty where it lists none."""
        try:
            models = json.loads(self._body)["data"]
            return [model["id"] for model in models]
        except (ValueError, KeyError, TypeError):
            return []

    def head_received(self, head: AnswerHead) -> None:
        self.status = head.status

    def body_received(self, data: bytes) -> None:
        if len(self._body) < MAX_LISTING_BYTES:
            self._body += data

    def answer_ended(self) -> None:
        self.leave()
        if not self.whole.done():
            self.whole.set_result(None)

    def leave(self) -> None:
        """Close the connection, once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def answer_broken(self, error: UpstreamError) -> None:
        self._connection = None
        if not self.whole.done():
            self.whole.set_exception(error)
