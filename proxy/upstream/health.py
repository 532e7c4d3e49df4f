"""Health checks: every replica is asked, again and again, whether it is there; each time on a connection of its own.

What the answers come to is `routing/health_check`'s; who gets no requests then, `routing/availability`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from random import Random

from proxy.errors import UpstreamError
from proxy.routing.health_check import HealthRules, is_well
from proxy.routing.replica import Replica
from proxy.routing.table import Route
from proxy.upstream.connection import AnswerHead
from proxy.upstream.message import probing_message
from proxy.upstream.pool import Pool

logger = logging.getLogger("penstock")


class HealthChecks:
    """One task for each replica whose route asks for it. The owner's duty: `close`, before the pool."""

    def __init__(self, pool: Pool, rng: Random | None = None) -> None:
        self._pool = pool
        self._rng = rng or Random()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, routes: Iterable[Route]) -> None:
        """From now on check the replicas of these routes, and no others. Each one's first probe is a pause away."""
        for task in self._tasks:
            task.cancel()
        self._tasks |= {
            self._loop.create_task(self._check(route.name, replica))
            for route in routes
            for replica in route.replicas
            if replica.standing.health is not None
        }
        for task in self._tasks:
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Check no more."""
        self.watch(())
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _check(self, route: str, replica: Replica) -> None:
        while (health := replica.standing.health) is not None:
            await asyncio.sleep(health.rules.pause_s(self._rng))
            try:
                finding = await self._finding(replica, health.rules)
            except Exception:
                logger.exception('route "%s": replica %d could not be checked', route, replica.index)
                continue
            if replica.standing.probed(well=finding is None, now=self._loop.time()):
                if finding is None:
                    logger.info('route "%s": replica %d is up again', route, replica.index)
                else:
                    logger.warning('route "%s": replica %d is down: %s', route, replica.index, finding)

    async def _finding(self, replica: Replica, rules: HealthRules) -> str | None:
        """What is wrong with the replica; None for nothing."""
        try:
            async with asyncio.timeout(rules.timeout_s):
                status = await self._status(replica, rules.path)
        except TimeoutError:
            return f"no answer within {rules.timeout_s:g} s"
        except UpstreamError as error:
            return error.message
        return None if is_well(status) else f"it answers {status}"

    async def _status(self, replica: Replica, path: str) -> int:
        connection = await self._pool.connection(replica.origin, connect_timeout_s=None, fresh=True)
        answer = _Answer()
        try:
            connection.send(probing_message(replica, path), answer)
            return await answer.status
        finally:
            connection.close()


class _Answer:
    """A connection's receiver that only wants to know the `status`: done with it, or with what went wrong."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def head_received(self, head: AnswerHead) -> None:
        if not self.status.done():
            self.status.set_result(head.status)

    def body_received(self, data: bytes) -> None:
        """Nobody reads it."""

    def answer_ended(self) -> None:
        """The head said all."""

    def answer_broken(self, error: UpstreamError) -> None:
        if not self.status.done():
            self.status.set_exception(error)
