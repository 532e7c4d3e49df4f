"""Why a request is not taken on."""

from __future__ import annotations

from typing import Literal

import pytest

from proxy.access.refusal import Refusal


@pytest.mark.parametrize(
    ("code", "status"),
    [("rate_limit_exceeded", 429), ("too_many_streams", 429), ("queue_full", 429), ("queue_timeout", 503)],
)
def test_a_code_has_its_status(
    code: Literal["rate_limit_exceeded", "too_many_streams", "queue_full", "queue_timeout"], status: int
) -> None:
    assert Refusal(code, "no", 1.0).status == status
