"""The circuit breaker of one replica: it learns from real requests, and keeps them away from a replica that fails.

    closed     requests pass. `failures` of them failing within `within_s` opens it, if they are a tenth of what went on
    open       none passes for `open_for_s`; longer each time it opens again soon after it closed
    half-open  one passes: its success closes the breaker, its failure opens it again

What counts as a failure is `failure_kind`'s to say; active probes are `health_check`'s.
"""

from __future__ import annotations

import enum
from collections import deque

from msgspec import Struct

SHARE = 0.1
"""Failures that are a smaller part of what went on do not open it: a busy replica always has some."""
LONGEST_TIMES = 8
"""However often it opens again, it stays open for at most so many times `open_for_s`."""


class State(enum.IntEnum):
    """The value of `penstock_breaker_state`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerRules(Struct, frozen=True):
    """`breaker: {failures, within, open_for}` of a route."""

    failures: int = 5
    within_s: float = 30.0
    open_for_s: float = 10.0


class Breaker:
    """Every request that passes holds a ticket and says with it, once, how it went: `succeeded`, `failed` or `left`.

    A ticket from before the last change of state says nothing any more: what was under way when a replica failed does
    not speak for the one request that probes it.
    """

    __slots__ = (
        "_closed_at",
        "_failures",
        "_outcomes",
        "_probe_until",
        "_ticket",
        "_trips",
        "_until",
        "reopened",
        "rules",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.reopened = False
        """The last time that it opened, it was open before: what was let through to try the replica failed."""
        self._ticket = 0
        self._trips = 0
        self._until: float | None = None
        """When it is open no longer; None while it is closed."""
        self._probe_until = 0.0
        self._closed_at = 0.0
        self._outcomes = 0
        self._failures: deque[tuple[float, int]] = deque(maxlen=rules.failures)
        """The last failures: when, and as which outcome since it closed."""

    def state(self, now: float) -> State:
        if self._until is None:
            return State.CLOSED
        return State.OPEN if now < self._until else State.HALF_OPEN

    def admits(self, now: float) -> bool:
        """Whether a request may pass. Half-open, that is one; if that is never heard of again, later another."""
        return self._until is None or (now >= self._until and now >= self._probe_until)

    def retry_at(self) -> float:
        """When it will admit a request again, as far as is known; in the past if it does."""
        return 0.0 if self._until is None else max(self._until, self._probe_until)

    def enter(self, now: float) -> int:
        """A request passes. Its ticket."""
        if self._until is not None:
            self._ticket += 1
            self._probe_until = now + self.open_for_s()
        return self._ticket

    def succeeded(self, ticket: int, now: float) -> bool:
        """The replica answered: content came, or an answer that is no failure of its. True if that closed it."""
        if ticket != self._ticket:
            return False
        self._outcomes += 1
        if self._until is None:
            return False
        self._close(now)
        return True

    def failed(self, ticket: int, now: float) -> bool:
        """The replica failed. True if that opened it, be it once more."""
        if ticket != self._ticket:
            return False
        self._outcomes += 1
        if self._until is None:
            self._failures.append((now, self._outcomes))
            if not self._is_too_much(now):
                return False
        self._open(now)
        return True

    def left(self, ticket: int) -> None:
        """The client left before anything was known: a probe's place is free again."""
        if ticket == self._ticket:
            self._probe_until = 0.0

    def recovered(self, now: float) -> None:
        """A health check saw the replica come back: no need to wait any longer for the one request."""
        if self._until is not None:
            self._until = min(self._until, now)

    def change(self, rules: BreakerRules) -> None:
        """A reload's rules; what it knows and the state it is in stay."""
        if rules != self.rules:
            self.rules = rules
            self._failures = deque(self._failures, maxlen=rules.failures)

    def _is_too_much(self, now: float) -> bool:
        if len(self._failures) < self.rules.failures:
            return False
        at, outcome = self._failures[0]
        went_on = self._outcomes - outcome + 1
        return now - at <= self.rules.within_s and self.rules.failures >= went_on * SHARE

    def _open(self, now: float) -> None:
        if self._until is None and now - self._closed_at > self.rules.within_s + self.open_for_s():
            self._trips = 0  # it has been well for long enough
        self.reopened = self._until is not None
        self._trips += 1
        self._ticket += 1
        self._until = now + self.open_for_s()
        self._probe_until = 0.0

    def _close(self, now: float) -> None:
        self._ticket += 1
        self._until = None
        self._closed_at = now
        self._outcomes = 0
        self._failures.clear()

    def open_for_s(self) -> float:
        """How long it stays open, this time."""
        return self.rules.open_for_s * min(LONGEST_TIMES, 1 << max(0, self._trips - 1))
