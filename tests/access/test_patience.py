"""What a session puts up with: much at once, a little all the time, and no flood."""

from __future__ import annotations

import pytest

from proxy.access.patience import IDLE_A_MINUTE, Patience
from proxy.errors import TooManyRequests


@pytest.mark.parametrize("cost", [1, 10])
def test_a_minutes_worth_may_come_at_once_and_no_more(cost: int) -> None:
    patience = Patience(5.0)
    for _ in range(IDLE_A_MINUTE // cost):
        patience.spend(cost, 5.0)
    with pytest.raises(TooManyRequests) as raised:
        patience.spend(cost, 5.0)
    assert (raised.value.status, raised.value.code) == (429, "too_many_messages")


def test_a_steady_trickle_goes_on_for_ever() -> None:
    patience = Patience(0.0)
    for second in range(1000):
        patience.spend(IDLE_A_MINUTE // 60, float(second))
