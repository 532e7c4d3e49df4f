"""What holds for all tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that at the end no process waits for another. A test that fails is tried once
    more, and the summary names it: sockets and programs of others stall now and then on a busy machine."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=1))
