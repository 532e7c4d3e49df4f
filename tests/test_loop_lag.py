"""The loop's punctuality: what it is when somebody blocks it, and that nothing is left running."""

from __future__ import annotations

import asyncio
import time

from proxy.loop_lag import EVERY_S, REMEMBERED_S, LoopLag

BLOCKED_S = 0.05


async def test_a_loop_that_is_blocked_is_late_and_it_is_remembered() -> None:
    lag = LoopLag(0.002)
    await asyncio.sleep(0.01)
    time.sleep(BLOCKED_S)  # noqa: ASYNC251  (the very thing it is for)
    await asyncio.sleep(0.01)
    assert lag.worst_s() > BLOCKED_S - 0.01
    lag.stop()


async def test_a_block_is_seen_at_once_by_who_asks_right_after_it() -> None:
    lag = LoopLag(0.002)
    time.sleep(BLOCKED_S)  # noqa: ASYNC251
    assert lag.worst_s() > BLOCKED_S - 0.01
    lag.stop()


async def test_what_is_long_past_is_forgotten() -> None:
    lag = LoopLag(REMEMBERED_S / 2)  # so that two looks are all it remembers
    lag._latest.extend([9.0, 0.5, 0.25])
    assert 0.5 <= lag.worst_s() < 9.0
    lag.stop()


async def test_a_loop_nobody_has_looked_at_is_not_late() -> None:
    lag = LoopLag(EVERY_S)
    assert lag.worst_s() == 0.0
    lag.stop()


async def test_after_the_stop_nothing_is_scheduled() -> None:
    lag = LoopLag(0.001)
    await asyncio.sleep(0.01)
    lag.stop()
    looks = list(lag._latest)
    assert looks
    await asyncio.sleep(0.01)
    assert list(lag._latest) == looks
