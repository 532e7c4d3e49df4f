"""Requests whose tools the gateway runs: what a route offers, the toolchain that runs it, and one record of it all.

What is asked, and how it is told to a client, is `stages`' and `tool_chats`'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from proxy.admission import OnQueued
from proxy.downstream.tool_rounds import ToolRounds
from proxy.errors import GatewayError
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.record import EndState, RequestRecord, end_state_of
from proxy.toolchain.collected import Collected, ToolchainCollection
from proxy.toolchain.rounds import RoundRefused
from proxy.toolchain.run import Request, Stage, ToolchainRun
from proxy.toolchain.servers import ToolServers


class Sink(Stage, Protocol):
    """Where a run's events go, and the `stream` that a client hears them from. `error`: the one it ended with."""

    stream: Stream
    error: GatewayError | None


class ToolTurn(Struct, frozen=True):
    """One request: `base` has the members of its first chat completion, less its tools, `synthesis` those that the
    synthesis pass changes in it (None: there is none). Every round is sent as `request` is."""

    request: ProxyRequest
    route: Route
    record: RequestRecord
    base: Mapping[str, object]
    synthesis: Mapping[str, object] | None = None

    @property
    def asked(self) -> Request:
        loop = self.route.tool_loop
        return Request(self.base, self.synthesis, loop.max_rounds, loop.parallel, self.route.timeouts.total_s)


class RunRefused(Exception):
    """The upstream refused: `answer` can be given to the client as it is; its record is finished."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"refused with status {answer.status}")
        self.answer = answer


class ToolRuns:
    """Opens runs. The owner's duty: `close`, once nobody is served any more."""

    def __init__(self, relay: Relay, servers: ToolServers, longest_answer_bytes: int) -> None:
        self._relay = relay
        self._servers = servers
        self._longest_answer_bytes = longest_answer_bytes
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, turn: ToolTurn, sink: Sink, on_queued: OnQueued | None = None) -> ToolRun:
        """A run at its commit point: from there on everything goes into `sink`. `on_queued` is told if it waits.

        Raises `RunRefused` or `GatewayError`; cancelling closes the upstream connection. The caller's duty: `close` it.
        """
        servers = self._servers.hold()
        rounds = self._rounds(turn, servers, on_queued)
        run: ToolchainRun | None = None

        async def begin() -> ToolchainRun:
            nonlocal run
            catalogue = await servers.offer(turn.route.tools)
            run = ToolchainRun(turn.asked, catalogue, servers, rounds.exchanges, sink)
            await run.begin()
            return run

        try:
            begun = await rounds.before_commit(begin())
        except RoundRefused:
            raise _refused(rounds, turn, run) from None
        except BaseException:
            if run is not None:
                run.stop()
            rounds.close(run)
            raise
        rounds.commit(sink.stream)
        assert rounds.first is not None
        return ToolRun(rounds.first, turn.record, rounds, begun, sink, self._see_to_its_end)

    async def collect(self, turn: ToolTurn, on_queued: OnQueued | None = None) -> tuple[Collected, Answer]:
        """A whole run, and its first round's answer; its record is finished. Raises, and is cancelled, as `open`."""
        servers = self._servers.hold()
        rounds = self._rounds(turn, servers, on_queued)
        collection: ToolchainCollection | None = None

        async def collect() -> Collected:
            nonlocal collection
            catalogue = await servers.offer(turn.route.tools)
            collection = ToolchainCollection(turn.asked, catalogue, servers, rounds.exchanges)
            return await collection.collect()

        try:
            collected = await rounds.before_commit(collect())
        except RoundRefused:
            raise _refused(rounds, turn, collection) from None
        except BaseException:
            rounds.close(collection)
            raise
        rounds.close(collection)
        _finish(turn.record, EndState.COMPLETED)
        assert rounds.first is not None
        return collected, rounds.first

    async def close(self) -> None:
        """Wait until everything that was stopped has ended."""
        await asyncio.gather(*self._ending)

    def change(self, servers: ToolServers) -> None:
        """Runs that begin from now on use these; their owner closes them."""
        self._servers = servers

    def _rounds(self, turn: ToolTurn, servers: ToolServers, on_queued: OnQueued | None) -> ToolRounds:
        return ToolRounds(
            self._relay, turn.request, turn.route, turn.record, self._longest_answer_bytes, servers.release, on_queued
        )

    def _see_to_its_end(self, run: ToolchainRun) -> None:
        """In a task of its own: whoever stopped it does not wait for its tools."""
        task = asyncio.create_task(run.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class ToolRun:
    """A run under way; `answer` is its first round's."""

    def __init__(
        self,
        answer: Answer,
        record: RequestRecord,
        rounds: ToolRounds,
        run: ToolchainRun,
        sink: Sink,
        see_to_its_end: Callable[[ToolchainRun], None],
    ) -> None:
        self.answer = answer
        self._record = record
        self._rounds = rounds
        self._run = run
        self._sink = sink
        self._see_to_its_end = see_to_its_end

    def close(self) -> None:
        """It is over, one way or the other: what still runs is stopped, and the record is finished."""
        end_state = self._end_state()
        self._run.stop()
        self._rounds.close(self._run)
        self._sink.stream.cancel()
        self._see_to_its_end(self._run)
        _finish(self._record, end_state)

    def _end_state(self) -> EndState:
        if not self._sink.stream.ended:
            return EndState.CLIENT_CLOSED
        if self._rounds.interruption is not None:
            return EndState.DRAINED
        return EndState.COMPLETED if self._sink.error is None else end_state_of(self._sink.error)


def _refused(rounds: ToolRounds, turn: ToolTurn, run: ToolchainRun | ToolchainCollection | None) -> RunRefused:
    """Close rounds the last of which was refused; what is to be raised."""
    answer = rounds.current()
    rounds.close(run)
    _finish(turn.record, EndState.UPSTREAM_ERROR if answer.failure is not None else end_state_of(answer.status))
    return RunRefused(answer)


def _finish(record: RequestRecord, end_state: EndState) -> None:
    record.finish(end_state, asyncio.get_running_loop().time())
