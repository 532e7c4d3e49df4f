"""Health checks: every replica is asked, again and again, whether it is there; each time on a connection of its own.

What the answers come to is `routing/health_check`'s; who gets no requests then, `routing/availability`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from proxy.errors import Unavailable, UpstreamError
from proxy.routing.health_check import HealthRules, is_well
from proxy.routing.replica import Replica
from proxy.routing.standing import Standing
from proxy.routing.table import Route
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.message import probing_message
from proxy.upstream.pool import Pool

logger = logging.getLogger("penstock")


@dataclass(slots=True, eq=False)
class _Watched:
    """A replica that is checked: the route's name and what the file says of it now, and the task that does so."""

    route: str
    replica: Replica
    rules: HealthRules
    task: asyncio.Task[None]


class HealthChecks:
    """One task for each replica whose route asks for it. The owner's duty: `close`, before the pool."""

    def __init__(self, pool: Pool, rng: Random | None = None) -> None:
        self._pool = pool
        self._rng = rng or Random()
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Standing, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, routes: Iterable[Route]) -> None:
        """From now on check the replicas of these routes, and no others. A new one's first probe is a pause away; one
        that stays under the same rules keeps its turn."""
        before, self._watched = self._watched, {}
        for route in routes:
            for replica in route.replicas:
                if replica.standing.health is not None:
                    former = before.pop(replica.standing, None)
                    self._watch(route.name, replica, replica.standing.health.rules, former)
        for gone in before.values():
            gone.task.cancel()

    async def close(self) -> None:
        """Check no more."""
        self.watch(())
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _watch(self, route: str, replica: Replica, rules: HealthRules, former: _Watched | None) -> None:
        standing = replica.standing
        if former is not None and former.rules == rules:
            former.route, former.replica = route, replica
            self._watched[standing] = former
            return
        if former is not None:
            former.task.cancel()
        task = self._loop.create_task(self._check(standing))
        self._watched[standing] = _Watched(route, replica, rules, task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, standing: Standing) -> None:
        while (health := standing.health) is not None:
            await asyncio.sleep(health.rules.pause_s(self._rng))
            watched = self._watched[standing]
            route, replica = watched.route, watched.replica
            try:
                finding = await self._finding(replica, health.rules)
            except Unavailable:
                continue  # ours: it tells nothing of the replica
            except Exception:
                logger.exception('route "%s": replica %d could not be checked', route, replica.index)
                continue
            if standing.probed(well=finding is None, now=self._loop.time()):
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
        answer = _Answer(connection)
        try:
            connection.send(probing_message(replica, path), answer)
            return await answer.status
        finally:
            answer.leave()


class _Answer:
    """A connection's receiver that only wants to know the `status`: done with it, or with what went wrong. The
    connection is closed at its end: a moment later it may serve somebody else."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection: UpstreamConnection | None = connection
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def head_received(self, head: AnswerHead) -> None:
        if not self.status.done():
            self.status.set_result(head.status)

    def body_received(self, data: bytes) -> None:
        """Nobody reads it."""

    def answer_ended(self) -> None:
        """The head said all."""
        self.leave()

    def leave(self) -> None:
        """Close the connection, once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def answer_broken(self, error: UpstreamError) -> None:
        self._connection = None
        if not self.status.done():
            self.status.set_exception(error)
