"""Admission to a route: how many requests are in flight at once, who waits, and who is next.

The queue is fair between keys: each key with somebody waiting is served in turn, so one that sends a thousand requests
waits for itself. Pure: methods say who has been admitted or refused meanwhile; waking them up is the caller's.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass

from proxy.access.refusal import Refusal
from proxy.routing.pace import Pace


@dataclass(frozen=True, slots=True)
class RouteRules:
    """`limits: {streams, queue, queue_timeout}` of a route; None for no limit."""

    streams: int | None = None
    queue: int = 256
    queue_timeout_s: float | None = 30.0


class Stage(enum.Enum):
    WAITING = enum.auto()
    ADMITTED = enum.auto()
    REFUSED = enum.auto()
    LEFT = enum.auto()


class Ticket:
    """One request's place. `refusal` says why, once it is REFUSED. The owner's duty: `Limiter.leave`, always."""

    __slots__ = ("entered", "key", "refusal", "stage")

    def __init__(self, key: str, entered: float) -> None:
        self.key = key
        self.entered = entered
        self.stage = Stage.WAITING
        self.refusal: Refusal | None = None


class Limiter:
    """One route's admission. `in_flight` and `waiting` are counts.

    Tickets whose stage changed without their owner asking are returned: those whose turn has come, and one that was put
    out of a full queue.
    """

    __slots__ = ("_pace", "_queues", "in_flight", "rules", "waiting")

    def __init__(self, rules: RouteRules) -> None:
        self.rules = rules
        self.in_flight = 0
        self.waiting = 0
        self._queues: OrderedDict[str, OrderedDict[Ticket, None]] = OrderedDict()
        """The waiting ones by key; the first key is served next, and then goes to the end."""
        self._pace = Pace()

    def enter(self, key: str, now: float) -> tuple[Ticket, list[Ticket]]:
        """A request comes, `key` being whom it is fair to. Its ticket, and those put out in its favour."""
        ticket = Ticket(key, now)
        if not self._is_full():
            self._admit(ticket)
            return ticket, []
        displaced = self._make_room(key, now)
        if self.waiting >= self.rules.queue:
            self._refuse(ticket, now)
            return ticket, []
        self._queues.setdefault(key, OrderedDict())[ticket] = None
        self.waiting += 1
        return ticket, displaced

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """The request is over, or its client is gone, whatever stage it was in. Those admitted in its place."""
        stage, ticket.stage = ticket.stage, Stage.LEFT
        if stage is Stage.WAITING:
            self._take_out(ticket)
        if stage is not Stage.ADMITTED:
            return []
        if self._is_full():
            self._pace.beat(now)
        else:
            self._pace.rest()
        self.in_flight -= 1
        return self.admit() if self._queues else []

    def time_out(self, ticket: Ticket, now: float) -> None:
        """It has waited for `queue_timeout_s`: refused, unless its turn has just come."""
        if ticket.stage is Stage.WAITING:
            self._take_out(ticket)
            ticket.stage = Stage.REFUSED
            waited_s = now - ticket.entered
            told = f"All places of this model were taken for {waited_s:.0f} s."
            ticket.refusal = Refusal("queue_timeout", told, self._pace.wait_s(self.waiting + 1, now))

    def admit(self) -> list[Ticket]:
        """Those whom there is room for: to be called when `rules` has changed, which puts nobody out."""
        admitted = []
        while self._queues and not self._is_full():
            key, queue = self._queues.popitem(last=False)
            ticket, _ = queue.popitem(last=False)
            if queue:
                self._queues[key] = queue
            self.waiting -= 1
            self._admit(ticket)
            admitted.append(ticket)
        return admitted

    def position(self, ticket: Ticket) -> int:
        """How many are served before a waiting one, and itself: 1 is next."""
        rank = list(self._queues[ticket.key]).index(ticket)
        position = rank + 1
        earlier = True
        for key, queue in self._queues.items():
            if key == ticket.key:
                earlier = False
            else:
                position += min(len(queue), rank + 1 if earlier else rank)
        return position

    def wait_s(self, ticket: Ticket, now: float) -> float:
        """How long a waiting one is likely to wait, by the measured service rate."""
        return self._pace.wait_s(self.position(ticket), now)

    def _is_full(self) -> bool:
        return self.rules.streams is not None and self.in_flight >= self.rules.streams

    def _admit(self, ticket: Ticket) -> None:
        ticket.stage = Stage.ADMITTED
        self.in_flight += 1

    def _make_room(self, key: str, now: float) -> list[Ticket]:
        """In a full queue the key with most waiting gives up its last place to one with clearly fewer."""
        if self.waiting < self.rules.queue or not self._queues:
            return []
        longest = max(self._queues.values(), key=len)
        if len(longest) <= len(self._queues.get(key, ())) + 1:
            return []
        last = next(reversed(longest))
        self._take_out(last)
        self._refuse(last, now)
        return [last]

    def _refuse(self, ticket: Ticket, now: float) -> None:
        ticket.stage = Stage.REFUSED
        told = f"All places of this model are taken, and {self.waiting} requests wait for one."
        ticket.refusal = Refusal("queue_full", told, self._pace.wait_s(self.waiting + 1, now))

    def _take_out(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.key]
        del queue[ticket]
        self.waiting -= 1
        if not queue:
            del self._queues[ticket.key]
