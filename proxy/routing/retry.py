"""What is done after a failure: the table of http.md, and one request's way through it.

Before the first content only; after it an error is told in the stream. Which replica among several is the balancer's
choice; whether all requests together may try again, the budget's.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from random import Random
from typing import Final

from msgspec import Struct

from proxy.routing.availability import available
from proxy.routing.failure_kind import FailureKind
from proxy.routing.replica import Replica
from proxy.routing.retry_budget import RetryBudget

BACKOFF_S = 0.25
"""Before the first try at a replica that has just failed; doubled each time. Half of it is left to chance."""


class Again(enum.Enum):
    """When a replica that failed is asked again, where there is no other."""

    AFTER_BACKOFF = enum.auto()
    AFTER_RETRY_AFTER = enum.auto()
    """As it said itself; if it said nothing, never."""
    NEVER = enum.auto()


class Rule(Struct, frozen=True):
    """One row. `another`: another replica is tried; `same`: when the same one is; `fallbacks`: other routes are, if
    nothing else is left."""

    another: bool
    same: Again
    fallbacks: bool


_TRY_AGAIN: Final = Rule(another=True, same=Again.AFTER_BACKOFF, fallbacks=True)
_PASS_ON: Final = Rule(another=False, same=Again.NEVER, fallbacks=False)
RULES: Final = {
    FailureKind.STALE: _TRY_AGAIN,  # a second time: the first costs nothing
    FailureKind.UNREACHABLE: _TRY_AGAIN,
    FailureKind.BROKEN: _TRY_AGAIN,
    FailureKind.SERVER_ERROR: _TRY_AGAIN,
    FailureKind.ERROR_EVENT: _TRY_AGAIN,
    FailureKind.TOO_MANY: Rule(another=True, same=Again.AFTER_RETRY_AFTER, fallbacks=True),
    FailureKind.SILENT: Rule(another=True, same=Again.NEVER, fallbacks=True),
    FailureKind.CONTEXT_LENGTH: Rule(another=False, same=Again.NEVER, fallbacks=True),
    FailureKind.INVALID: _PASS_ON,
    FailureKind.TIMED_OUT: _PASS_ON,
    FailureKind.REJECTED: _PASS_ON,
}


class RetryRules(Struct, frozen=True):
    """`retry: {attempts, max_wait}` of a route: tries in all, and the longest wait for one of them."""

    attempts: int = 3
    max_wait_s: float = 5.0


class Next(enum.Enum):
    """What is done now."""

    TRY = enum.auto()
    """A replica of this route: one of `Attempts.candidates`, after `wait_s`."""
    FALLBACK = enum.auto()
    """Another route of `fallback_routes`, if there is one; else as PASS_ON."""
    PASS_ON = enum.auto()
    """The client gets the failure."""


class Step(Struct, frozen=True):
    next: Next
    wait_s: float = 0.0


class Attempts:
    """One request's tries at one route.

    The owner's way: pick one of `candidates` (none: fall back, or 503), begin its `Visit` before anything is awaited,
    as a breaker may let only one through, and tell `after` how it failed. While it is silent, one of `beside` may be
    asked as well: then `failed` is told of the first of the two that fails, and `after` of the last.
    """

    __slots__ = ("_budget", "_made", "_repeats", "_rng", "_rules", "_silent", "_stale", "_tried")

    def __init__(self, rules: RetryRules, budget: RetryBudget, rng: Random) -> None:
        self._rules = rules
        self._budget = budget
        self._rng = rng
        self._made = 0
        self._repeats = 0
        self._tried: list[Replica] = []
        self._silent: list[Replica] = []
        self._stale: list[Replica] = []

    def candidates(self, replicas: Sequence[Replica], now: float) -> Sequence[Replica]:
        """Those of `replicas` that may be asked now: untried ones, else those that were not silent."""
        if not self._tried:
            return available(replicas, now)
        return self._untried(replicas, now) or available([r for r in replicas if r not in self._silent], now)

    def wants_fresh(self, kind: FailureKind, replica: Replica) -> bool:
        """Whether `replica` is asked again at once, on a fresh connection: for a stale one, once; it costs no try."""
        if kind is not FailureKind.STALE or replica in self._stale:
            return False
        self._stale.append(replica)
        return True

    def beside(self, replica: Replica, replicas: Sequence[Replica], now: float) -> Sequence[Replica]:
        """Those that may be asked while `replica` is still silent; none, or the try at one of them is paid for."""
        if self._made + 2 > self._rules.attempts:
            return ()
        others = self._untried([other for other in replicas if other is not replica], now)
        return others if others and self._budget.spend(now) else ()

    def failed(self, kind: FailureKind, replica: Replica) -> None:
        """`replica` failed, and another one that was asked beside it is still under way."""
        self._made += 1
        self._tried.append(replica)
        if kind is FailureKind.SILENT:
            self._silent.append(replica)

    def after(
        self,
        kind: FailureKind,
        replica: Replica,
        replicas: Sequence[Replica],
        now: float,
        *,
        retry_after_s: float | None = None,
    ) -> Step:
        """What comes next, `replica` having failed: before the first content, or in the middle of an answer that is to
        be continued. A step to try is paid for already."""
        self.failed(kind, replica)
        rule = RULES[kind]
        wait_s = self._wait_s(rule, replicas, retry_after_s, now) if self._made < self._rules.attempts else None
        if wait_s is not None and self._budget.spend(now):
            return Step(Next.TRY, wait_s)
        return Step(Next.FALLBACK if rule.fallbacks else Next.PASS_ON)

    def _untried(self, replicas: Sequence[Replica], now: float) -> Sequence[Replica]:
        return available([replica for replica in replicas if replica not in self._tried], now)

    def _wait_s(self, rule: Rule, replicas: Sequence[Replica], retry_after_s: float | None, now: float) -> float | None:
        """How long until the next try at this route; None for never."""
        if not rule.another:
            return None
        if self._untried(replicas, now):
            return 0.0
        wait_s = self._repeat_wait_s(rule, retry_after_s)
        if wait_s is None or not self.candidates(replicas, now + wait_s):
            return None
        self._repeats += 1
        return wait_s

    def _repeat_wait_s(self, rule: Rule, retry_after_s: float | None) -> float | None:
        longest_s = self._rules.max_wait_s
        if rule.same is Again.NEVER or (retry_after_s is None and rule.same is Again.AFTER_RETRY_AFTER):
            return None
        if retry_after_s is not None and retry_after_s > longest_s:
            return None
        backoff_s = BACKOFF_S * (1 << self._repeats) * self._rng.uniform(0.5, 1.0)
        return min(longest_s, (retry_after_s or 0.0) + backoff_s)  # those who were told the same do not come at once


class Fallback(Struct, frozen=True):
    """An entry of `fallbacks`: another route, for any failure (`reasons` empty) or only for these."""

    route: str
    reasons: tuple[FailureKind, ...] = ()


def fallback_routes(fallbacks: Sequence[Fallback], kind: FailureKind | None) -> list[str]:
    """The routes to try after a failure of this kind, in order; None: no replica could be asked at all.

    A prompt that is too long goes only where the file says so, and nothing else goes there.
    """
    if kind is FailureKind.CONTEXT_LENGTH:
        return [fallback.route for fallback in fallbacks if kind in fallback.reasons]
    if kind is not None and not RULES[kind].fallbacks:
        return []
    return [fallback.route for fallback in fallbacks if not fallback.reasons]
