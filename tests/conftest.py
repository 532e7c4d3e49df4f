"""What holds for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PURE = frozenset({"access", "config", "protocols", "routing", "telemetry", "wire"})
"""Rooms without sockets, loops or clocks: their tests have one try."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that at the end no process waits for another. A test of any other room that
    fails is tried once more, and the summary names it: sockets and programs of others stall on a busy machine."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.path.relative_to(TESTS).parts[0] not in PURE:
            item.add_marker(pytest.mark.flaky(reruns=1))
