"""How long an upstream asks to be left alone: its `Retry-After`, in either of the two forms HTTP has."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(value: str | None, date: datetime) -> float | None:
    """Seconds from `date` (aware) on, never less than 0; None where there is nothing that can be read.

    `120`, `0.5` (which some servers send) or `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 10.2.3).
    """
    if value is None:
        return None
    text = value.strip()
    if text[:1].isdigit():
        return _seconds(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - date).total_seconds())


def _seconds(text: str) -> float | None:
    whole, _, part = text.partition(".")
    if not (whole + part).isascii() or not (whole + part).isdigit() or len(text) > 12:
        return None
    return float(text)
