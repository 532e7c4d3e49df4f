"""`Retry-After`, as servers send it and as they should not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.retry_after import retry_after_s

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("3", 3.0),
        (" 120 ", 120.0),
        ("0.5", 0.5),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 13:00:30 +0100", 30.0),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
    ],
)
def test_both_forms_are_read(value: str, seconds: float) -> None:
    assert retry_after_s(value, NOON) == seconds


@pytest.mark.parametrize(
    "value",
    [None, "", "soon", "-3", "1e9", "3 s", "٣", "1.2.3", "9" * 400, "Sun, 99 Nov 2026 12:00:30 GMT", "nan", "inf"],
)
def test_what_cannot_be_read_says_nothing(value: str | None) -> None:
    assert retry_after_s(value, NOON) is None


@given(st.text())
def test_no_text_does_harm(value: str) -> None:
    seconds = retry_after_s(value, NOON)
    assert seconds is None or seconds >= 0
