"""Why a request is not taken on: a decision, with everything its 429 or 503 needs to say."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Refusal(Struct, frozen=True):
    """`queue_timeout` is a 503, the others are a 429. `retry_after_s` is in whole seconds, at least one."""

    code: Literal["rate_limit_exceeded", "too_many_streams", "queue_full", "queue_timeout"]
    message: str
    retry_after_s: float

    @property
    def status(self) -> int:
        return 503 if self.code == "queue_timeout" else 429
