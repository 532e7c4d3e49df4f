"""What one key may use: requests and tokens a minute, streams at once.

Pure, and told the time. What a route takes on at once, and who waits for it, is `routing/limiter`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from proxy.access.refusal import Refusal

MINUTE_S = 60.0
STREAM_WAIT_S = 1.0
"""What is said to a key whose streams all run: one of them may end at any time."""


class KeyRules(Struct, frozen=True):
    """`limits:` of a key; None for no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None


class Bucket:
    """Holds what may be used at once, a minute's worth at the most, and fills up evenly.

    It can be drawn below empty: what an answer costs is known only when it has been given. Then nothing is given until
    the debt has flowed back.
    """

    __slots__ = ("_at", "_level", "_per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = float(per_minute)
        self._level = self._per_minute
        self._at = now

    def level(self, now: float) -> float:
        if now > self._at:
            self._level = min(self._per_minute, self._level + (now - self._at) * self._per_minute / MINUTE_S)
            self._at = now
        return self._level

    def wait_s(self, least: float, now: float) -> float:
        """Until it holds `least`; 0 if it does."""
        return max(0.0, (least - self.level(now)) * MINUTE_S / self._per_minute)

    def draw(self, amount: float, now: float) -> None:
        """Take this much, whether it is there or not; a negative amount gives back."""
        self._level = min(self._per_minute, self.level(now) - amount)

    def change(self, per_minute: int, now: float) -> None:
        """A reload's limit: what has been used stays used."""
        self._level = self.level(now) + per_minute - self._per_minute
        self._per_minute = float(per_minute)


class Allowance:
    """What one key has left. The owner's duty: for each `take` that was not refused, one `give_back`."""

    __slots__ = ("_requests", "_rules", "_tokens", "streams")

    def __init__(self, rules: KeyRules, now: float) -> None:
        self._rules = rules
        self._requests = _bucket(rules.requests_per_minute, now)
        self._tokens = _bucket(rules.tokens_per_minute, now)
        self.streams = 0

    def take(self, estimated_tokens: int, now: float) -> Refusal | None:
        """Count a request in, with what its prompt is likely to cost; or why not: then nothing was counted.

        A prompt larger than what is left passes as long as anything is, or a large one would never pass.
        """
        refusal = self._refusal(now)
        if refusal is not None:
            return refusal
        self.streams += 1
        if self._requests is not None:
            self._requests.draw(1, now)
        if self._tokens is not None:
            self._tokens.draw(estimated_tokens, now)
        return None

    def give_back(self, estimated_tokens: int, used_tokens: int, now: float) -> None:
        """The request is over: the tokens it used, input and output, take the place of the estimate."""
        self.streams -= 1
        if self._tokens is not None:
            self._tokens.draw(used_tokens - estimated_tokens, now)

    def change(self, rules: KeyRules, now: float) -> None:
        """A reload's limits."""
        self._requests = _changed(self._requests, rules.requests_per_minute, now)
        self._tokens = _changed(self._tokens, rules.tokens_per_minute, now)
        self._rules = rules

    def _refusal(self, now: float) -> Refusal | None:
        rules = self._rules
        if rules.streams is not None and self.streams >= rules.streams:
            told = f"This key may have {rules.streams} streams at once, and has: end one, or wait for one."
            return Refusal("too_many_streams", told, STREAM_WAIT_S)
        if self._requests is not None and (wait_s := self._requests.wait_s(1.0, now)) > 0:
            return _rate_exceeded(f"{rules.requests_per_minute} requests", wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s(1.0, now)) > 0:
            return _rate_exceeded(f"{rules.tokens_per_minute} tokens", wait_s)
        return None


class Allowances:
    """Every limited key's allowance, by the key's name."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[str, Allowance] = {}

    def of(self, key: str | None) -> Allowance | None:
        """None for a key without limits, and where no keys are asked for."""
        return None if key is None else self._by_key.get(key)

    def change(self, rules: Mapping[str, KeyRules], now: float) -> None:
        """The file's limits by key name, at the start and at each reload: a key that stays keeps what it has used."""
        kept = {name: self._by_key.get(name) or Allowance(its, now) for name, its in rules.items()}
        for name, allowance in kept.items():
            allowance.change(rules[name], now)
        self._by_key = {name: allowance for name, allowance in kept.items() if rules[name] != KeyRules()}


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now)


def _changed(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if bucket is None or per_minute is None:
        return _bucket(per_minute, now)
    bucket.change(per_minute, now)
    return bucket


def _rate_exceeded(limit: str, wait_s: float) -> Refusal:
    whole_s = float(max(1, math.ceil(wait_s)))
    told = f"This key may use {limit} a minute, and has: try again in {whole_s:.0f} s."
    return Refusal("rate_limit_exceeded", told, whole_s)
