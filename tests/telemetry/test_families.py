"""The metrics there are: the contract's names and labels, and that each one can be told."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.telemetry.exposition import exposition
from proxy.telemetry.families import FAMILIES
from tests.support.prometheus import read

CONTRACT = {
    "penstock_requests_total": ("route", "endpoint", "transport", "outcome"),
    "penstock_request_duration_seconds": ("route", "endpoint", "transport", "outcome"),
    "penstock_time_to_first_token_seconds": ("route",),
    "penstock_inter_token_seconds": ("route",),
    "penstock_tokens_total": ("route", "kind", "estimated"),
    "penstock_streams_in_flight": ("route",),
    "penstock_queue_depth": ("route",),
    "penstock_queue_wait_seconds": ("route",),
    "penstock_upstream_attempts_total": ("route", "replica", "outcome"),
    "penstock_replica_up": ("route", "replica"),
    "penstock_breaker_state": ("route", "replica"),
    "penstock_client_disconnects_total": ("route", "phase"),
    "penstock_streams_truncated_total": ("route",),
    "penstock_malformed_events_total": ("route",),
    "penstock_bursting_upstream": ("route",),
    "penstock_websocket_sessions": ("dialect",),
    "penstock_config_reloads_total": (),
    "penstock_config_last_reload_success": (),
    "penstock_event_loop_lag_seconds": (),
    "penstock_workers_reporting": (),
    "penstock_build_info": ("version",),
}


def test_names_and_labels_are_the_contracts() -> None:
    assert {family.name: family.labels for family in FAMILIES} == CONTRACT


def test_the_operators_page_explains_each_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [family.name for family in FAMILIES if f"`{family.name}`" not in text] == []


def test_names_say_what_they_are() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"penstock_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.help.endswith(".")


def test_only_histograms_have_buckets_and_theirs_rise() -> None:
    for family in FAMILIES:
        assert bool(family.bounds) == (family.kind == "histogram")
        assert list(family.bounds) == sorted(set(family.bounds))


def test_only_gauges_are_anything_but_added_up() -> None:
    assert {family.kind for family in FAMILIES if family.together != "sum"} == {"gauge"}


def test_prometheus_takes_them_all() -> None:
    kinds = read(exposition(FAMILIES, {})).kinds
    assert kinds == {family.name.removesuffix("_total"): family.kind for family in FAMILIES}
