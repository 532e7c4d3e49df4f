"""An answer that goes on at another replica where it breaks off, so that its client sees one (`on_break: continue`).

It stands between the exchange under way and the client's stream: a listener to the one, the source of the other. What
the client has, and what of another answer goes on, `protocols` says; who is asked for it, dispatch and the fallbacks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from msgspec import Struct

from proxy.errors import GatewayError, NoReplica, UpstreamTruncated
from proxy.fallback import Asking, fall_back
from proxy.protocols.account import Account
from proxy.protocols.failure import Failure
from proxy.protocols.splice import Differs, Spent, Splice
from proxy.request import RequestBody
from proxy.routing.failure_kind import FailureKind, kind_of_error, kind_of_failure
from proxy.routing.table import Route
from proxy.streams.stream import Stream
from proxy.telemetry.attempt import Outcome, outcome_of
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.usage import Usage, usage_of_stream
from proxy.upstream.attempt import Opened, Tried
from proxy.upstream.dispatch import Dispatch
from proxy.wire.sse import Event

logger = logging.getLogger("penstock")


class Break(Struct, frozen=True):
    """How the answer broke off: by an error, or by an event of the upstream's that tells of one."""

    kind: FailureKind
    error: GatewayError | None = None
    event: Event | None = None
    failure: Failure | None = None


class Run(Struct, frozen=True):
    """One exchange that gives a part of the answer, to a request with this body. `splice`: what of it goes on (None:
    all)."""

    opened: Opened
    stream: Stream
    body: RequestBody
    splice: Splice | None = None

    def usage(self) -> Usage:
        return usage_of_stream(self.opened.asked.protocol, self.opened.watcher, self.stream.events, self.body)


class Continuation:
    """One answer. Whoever opens it has it flow into `upstream`, and then has the duty to `begin`.

    The first exchange's watcher stands for all of them, and tells at the end what is known. `on_route` is told which
    route goes on.
    """

    def __init__(self, stream: Stream, account: Account, dispatch: Dispatch, on_route: Callable[[Route], None]) -> None:
        self.upstream = Stream()
        self._stream = stream
        self._account = account
        self._dispatch = dispatch
        self._on_route = on_route
        self._full = False
        self._first: Run | None = None
        self._run: Run | None = None
        self._break: Break | None = None
        self._spent: list[Usage] = []
        self._times = 0
        self._task: asyncio.Task[None] | None = None
        stream.flow_from(self)

    def begin(self, opened: Opened, asking: Asking, route: Route) -> None:
        """The answer that was asked for at `route` is at its commit point; what flows of it goes on from now on."""
        self._asking = asking
        self._route = route
        self._passed = [route.name, opened.route.name]
        record = asking.record
        self._later = RequestRecord(record.request_id, record.method, record.path, record.started, key=record.key)
        """Has the attempts after the first exchange's: until the end, the client's own record goes on untouched."""
        self._first = self._run = Run(opened, self.upstream, asking.request.body)
        if not opened.opening.events:
            self._account.continuable = False
        self.upstream.attach(self)

    def usage(self) -> Usage | None:
        """The tokens of all parts of an answer that broke off, also of what no client saw; None if it did not."""
        if not self._spent:
            return None
        parts = self._spent if self._run is None else [*self._spent, self._run.usage()]
        tokens_in = sum(part.tokens_in or 0 for part in parts)
        tokens_out = sum(part.tokens_out or 0 for part in parts)
        return Usage(tokens_in, tokens_out, any(part.estimated for part in parts))

    def tell(self, record: RequestRecord, outcome: Outcome) -> None:
        """It is over, and this is what came of the last attempt: the record gets what came after the first one."""
        if self._spent:
            self._later.end_attempt(outcome)
            record.add_attempts(self._later)
            record.continued = self._times + (self._run is not None and _is_taken_up(self._run))

    # ---- the exchange's side (its stream's listener) ----

    def write(self, events: list[Event]) -> bool:
        run, account = self._run, self._account
        assert run is not None
        if run.splice is not None:
            try:
                events = run.splice.passed(events)
            except Differs as difference:
                logger.info("request %s is not continued: %s", self._later.request_id, difference)
                self._end_run(run, Outcome.OK)
                self._give_up()
                return False
        if account.continuable:
            for event in events:
                account.hear(event)
                if account.failure is not None:
                    self._fail(run, events, event)
                    return self._full
        if not events:
            return self._full
        self._stream.publish(events)
        return self._full

    def end(self, error: GatewayError | None) -> None:
        run = self._run
        assert run is not None
        if error is None and run is not self._first and not _is_taken_up(run):
            error = UpstreamTruncated("the answer was not taken up")
        kind = None if error is None else kind_of_error(error)
        if error is None or kind is None:
            self._settle(run)
            self._stream.end(error)
        else:
            self._break_off(run, Break(kind, error), outcome_of(error, connected=True))

    # ---- the client's side (its stream's source) ----

    def pause(self) -> None:
        self._full = True

    def resume(self) -> None:
        self._full = False
        self.upstream.drained()

    def interrupt(self, error: GatewayError) -> None:
        self.upstream.interrupt(error)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.upstream.cancel()
        if self._run is not None:
            self._settle(self._run)

    # ---- from one run to the next ----

    def _fail(self, run: Run, events: list[Event], event: Event) -> None:
        """One of these tells of an error: those before it go on."""
        before = events[: next(at for at, each in enumerate(events) if each is event)]
        if before:
            self._stream.publish(before)
        watcher = run.opened.watcher
        failure, watcher.failure, self._account.failure = watcher.failure, None, None
        kind = FailureKind.ERROR_EVENT if failure is None else kind_of_failure(failure)
        self._break_off(run, Break(kind, event=event, failure=failure), Outcome.ERROR_EVENT)

    def _break_off(self, run: Run, broken: Break, outcome: Outcome) -> None:
        if run is self._first or _is_taken_up(run):
            self._break = broken  # else it has not been taken up: what is broken off is still the same
        self._end_run(run, outcome)
        if self._account.can_go_on():
            self._task = asyncio.get_running_loop().create_task(self._go_on(run, broken.kind))
        else:
            self._give_up()

    def _end_run(self, run: Run, outcome: Outcome) -> None:
        run.stream.cancel()
        self._note(run)
        self._spent.append(run.usage())
        self._times += _is_taken_up(run)
        self._run = None
        (self._asking.record if run is self._first else self._later).end_attempt(outcome)

    async def _go_on(self, run: Run, kind: FailureKind) -> None:
        """Somebody else goes on behind this run; if nobody does, the answer ends as it broke off."""
        following: Run | None = None
        try:
            following = await self._following(run, kind)
        except GatewayError as error:
            logger.debug("request %s is not continued: %s", self._later.request_id, error.message)
        except Exception:
            logger.exception("request %s could not be continued", self._later.request_id)
        if following is None:
            self._give_up()
            return
        self._run = following
        self._on_route(following.opened.route)
        following.stream.attach(self)

    async def _following(self, run: Run, kind: FailureKind) -> Run | None:
        """Another replica's answer at its commit point; None where there is none. Raises what the stream was
        interrupted with."""
        account, before = self._account, self.usage()
        assert before is not None
        stream = self.upstream = Stream()
        asked = replace(run.opened.asked, stream=stream, record=self._later, told=account, race=None)
        tried: Tried | None
        try:
            tried = await self._dispatch.open_again(asked, run.opened.replica, kind)
        except NoReplica:
            tried = None
        if tried is None or tried.kind is not None:
            kind = kind if tried is None or tried.kind is None else tried.kind
            asking = replace(self._asking, stream=stream, record=self._later, told=account, on_queued=None)
            tried = await fall_back(asking, self._route, self._dispatch, kind, self._passed)
        if not isinstance(tried, Opened) or not tried.opening.events:
            stream.cancel()
            return None
        spent = Spent(before.tokens_in or 0, before.tokens_out or 0)
        continues = tried.replica.continues
        return Run(tried, stream, account.body_for(continues), account.splice(continues, spent))

    def _give_up(self) -> None:
        """The terminal error is the break itself, whatever became of going on."""
        broken = self._break
        if broken is None or self._stream.ended:
            return
        if broken.event is not None and self._first is not None:
            self._first.opened.watcher.failure = broken.failure
            self._stream.publish([broken.event])
        self._stream.end(broken.error)

    def _note(self, run: Run) -> None:
        """What the client's stream tells of a run that is over."""
        if self._stream.first_content_at is None:
            self._stream.first_content_at = run.stream.first_content_at
        self._stream.last_read_at = run.stream.last_read_at

    def _settle(self, run: Run) -> None:
        """It was the last one: what is known by now is told by the first one's watcher."""
        self._note(run)
        if self._first is not None and run is not self._first and (usage := self.usage()) is not None:
            first, last = self._first.opened.watcher, run.opened.watcher
            first.complete, first.failure = last.complete, last.failure
            first.tokens_in, first.tokens_out = usage.tokens_in, usage.tokens_out


def _is_taken_up(run: Run) -> bool:
    """Whether something of it went on behind what the client had."""
    return run.splice is not None and run.splice.through
