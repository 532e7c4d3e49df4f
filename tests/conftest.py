"""What holds for all tests."""

from __future__ import annotations

import pytest

FOREIGN = ("browser", "real_server")
"""Tests with these marks wait for programs of others, which stall now and then for seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try those once more when they fail; the summary says so. All others have one try."""
    for item in items:
        if any(item.get_closest_marker(mark) for mark in FOREIGN):
            item.add_marker(pytest.mark.flaky(reruns=1))
