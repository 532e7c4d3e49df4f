"""How a replica stands right now: what is in flight at it, how fast it answers, whether it may be asked.

Everything that a reload keeps is here; what the file says of a replica is in `replica`. Pure: it is told of exchanges
and probes, it does not watch them.
"""

from __future__ import annotations

from proxy.routing.average import Average
from proxy.routing.breaker import Breaker, BreakerRules, State
from proxy.routing.breaker_log import BreakerLog
from proxy.routing.failure_kind import ANSWERED, COUNTED, FailureKind
from proxy.routing.health_check import Health, HealthRules

REST_S = 1.0
"""How long a replica that said 429 without a Retry-After is asked only when there is no other."""
LONGEST_REST_S = 60.0


class Standing:
    """What is known of one replica. `breaker` and `health` are None where the route has none."""

    __slots__ = ("breaker", "first_token", "health", "in_flight", "log", "rests_until")

    def __init__(self, breaker: BreakerRules | None = None, health: HealthRules | None = None) -> None:
        self.in_flight = 0
        self.first_token = Average()
        self.breaker = None if breaker is None else Breaker(breaker)
        self.health = None if health is None else Health(health)
        self.log: BreakerLog | None = None
        """Who is told when the breaker turns."""
        self.rests_until = 0.0
        """It said that it is asked too much: others come first until then."""

    def up(self) -> bool:
        return self.health is None or self.health.up

    def breaker_state(self, now: float) -> State:
        return State.CLOSED if self.breaker is None else self.breaker.state(now)

    def available(self, now: float) -> bool:
        """Whether a request may be sent to it."""
        return (self.health is None or self.health.up) and (self.breaker is None or self.breaker.admits(now))

    def probed(self, *, well: bool, now: float) -> bool:
        """A health check's result. True if the replica went down or came up with it."""
        if self.health is None:
            return False
        turned = self.health.passed() if well else self.health.failed()
        if turned and well and self.breaker is not None:
            self.breaker.recovered(now)
        return turned

    def change(self, breaker: BreakerRules | None, health: HealthRules | None) -> None:
        """A reload's rules: what is known stays, as far as there is still a place for it."""
        if breaker is None or self.breaker is None:
            self.breaker = None if breaker is None else Breaker(breaker)
        else:
            self.breaker.change(breaker)
        if health is None or self.health is None:
            self.health = None if health is None else Health(health)
        else:
            self.health.rules = health


class Visit:
    """One exchange at one replica, from before it connects to its end.

    The owner's duty: `over` once the replica is no longer needed, whatever happened, and one of `content`, `failed`,
    `outrun` and `left` as soon as it is known, `failed` also after `content`. Said again, they change nothing.
    """

    __slots__ = ("_breaker", "_failed", "_over", "_spoken", "_standing", "_started", "_ticket")

    def __init__(self, standing: Standing, now: float) -> None:
        standing.in_flight += 1
        self._standing = standing
        self._breaker = standing.breaker
        self._ticket = 0 if standing.breaker is None else standing.breaker.enter(now)
        self._started = now
        self._spoken = self._failed = self._over = False

    def content(self, now: float) -> None:
        """The first content came, or a whole answer that is no failure."""
        if self._spoken or self._failed:
            return
        self._spoken = True
        self._standing.first_token.add(now - self._started, now)
        if self._breaker is not None and self._breaker.succeeded(self._ticket, now):
            self._closed()

    def failed(self, kind: FailureKind, now: float, retry_after_s: float | None = None) -> None:
        """It failed, before the first content or after it."""
        if self._failed:
            return
        self._failed = True
        if kind is FailureKind.TOO_MANY:
            rest_s = REST_S if retry_after_s is None else min(retry_after_s, LONGEST_REST_S)
            self._standing.rests_until = now + rest_s
        if self._breaker is None:
            return
        if kind in COUNTED:
            if self._breaker.failed(self._ticket, now) and self._standing.log is not None:
                self._standing.log.opened(self._breaker)
        elif kind in ANSWERED and not self._spoken:
            if self._breaker.succeeded(self._ticket, now):
                self._closed()
        elif not self._spoken:
            self._breaker.left(self._ticket)

    def left(self) -> None:
        """Nobody waits for it any more, and nothing is known of how it would have gone."""
        if self._breaker is not None and not (self._spoken or self._failed):
            self._breaker.left(self._ticket)

    def outrun(self, now: float) -> None:
        """Another replica answered sooner: nothing is known but that this one takes longer than it has by now."""
        waited_s = now - self._started
        if not (self._spoken or self._failed) and waited_s > self._standing.first_token.value(now):
            self._standing.first_token.add(waited_s, now)
        self.left()

    def over(self) -> None:
        """The replica is free of it."""
        if not self._over:
            self._over = True
            self._standing.in_flight -= 1

    def _closed(self) -> None:
        if self._standing.log is not None:
            self._standing.log.closed()
