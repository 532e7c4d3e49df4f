"""Malformed events: every one is counted, few are said."""

from __future__ import annotations

import pytest

from proxy.config.model import Config
from proxy.routing.table import build_table
from proxy.telemetry.malformed_events import SAID_EVERY_S, MalformedEvents
from proxy.telemetry.request_metrics import Metrics


def test_each_is_counted_and_one_a_minute_and_route_is_said(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics("1")
    now = [100.0]
    events = MalformedEvents(metrics, lambda: now[0])
    one, other = build_table(Config.model_validate({"routes": {"one": "demo://", "other": "demo://"}})).routes
    for at_s, route in ((100.0, one), (100.0 + SAID_EVERY_S - 1, one), (130.0, other), (100.0 + SAID_EVERY_S, one)):
        now[0] = at_s
        events.dropped(route)
    assert (metrics.malformed_events.of("one").value, metrics.malformed_events.of("other").value) == (3, 1)
    said = 'route "{}": an event that is not a JSON object was dropped'.format
    assert caplog.messages == [said("one"), said("other"), said("one")]
