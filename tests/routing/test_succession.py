"""What a reload keeps, and what the new file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.loader import load
from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.prefix import Prefix
from proxy.routing.breaker import State
from proxy.routing.failure_kind import FailureKind
from proxy.routing.limiter import RouteRules, Stage
from proxy.routing.standing import Visit
from proxy.routing.table import Route, RoutingTable, build_table
from tests.support.replicas import facts, fail

BEFORE = """
routes:
  chat:
    replicas: ["http://gpu-1:8000", "http://gpu-2:8000"]
    breaker: {failures: 1}
    balance: prefix
    limits: {streams: 1, queue: 5}
"""


def table(folder: Path, text: str, before: RoutingTable | None = None) -> RoutingTable:
    file = folder / "routes.yaml"
    file.write_text(text, encoding="utf-8")
    return build_table(load(file, {}), before)


def chat(routes: RoutingTable) -> Route:
    return routes.find("chat", None)


def test_a_replica_that_stays_keeps_how_it_stands(tmp_path: Path) -> None:
    before = table(tmp_path, BEFORE)
    visit = Visit(chat(before).replicas[0].standing, 100.0)
    fail(chat(before).replicas[1], FailureKind.UNREACHABLE, 100.0)
    chat(before).replicas[1].takes_stream_options = False
    more = BEFORE.replace("[", '["http://gpu-0:8000", ')
    after = table(tmp_path, more, before)
    new, one, two = chat(after).replicas
    assert (new.in_flight, one.in_flight, two.in_flight) == (0, 1, 0)
    assert [replica.standing.breaker_state(100.0) for replica in (new, one, two)] == [
        State.CLOSED,
        State.CLOSED,
        State.OPEN,
    ]
    assert [replica.takes_stream_options for replica in (new, one, two)] == [True, True, False]
    visit.over()
    assert one.in_flight == 0


def test_its_settings_are_the_new_files(tmp_path: Path) -> None:
    before = table(tmp_path, BEFORE)
    fail(chat(before).replicas[0], FailureKind.UNREACHABLE, 100.0)
    text = BEFORE.replace('"http://gpu-1:8000"', '{url: "http://gpu-1:8000", weight: 3}')
    after = chat(table(tmp_path, text.replace("breaker: {failures: 1}", "breaker: none"), before))
    assert after.replicas[0].weight == 3
    assert after.replicas[0].standing.available(100.0)


def test_another_routes_replica_at_the_same_address_is_another_one(tmp_path: Path) -> None:
    before = table(tmp_path, BEFORE)
    fail(chat(before).replicas[0], FailureKind.UNREACHABLE, 100.0)
    after = table(tmp_path, BEFORE + '  other: {replicas: ["http://gpu-1:8000"], breaker: {failures: 1}}\n', before)
    assert not chat(after).replicas[0].standing.available(100.0)
    assert after.find("other", None).replicas[0].standing.available(100.0)


def test_two_replicas_at_one_address_stay_two(tmp_path: Path) -> None:
    twice = 'routes: {chat: {replicas: ["http://gpu:8000", "http://gpu:8000"]}}'
    before = chat(table(tmp_path, twice))
    before.replicas[0].in_flight, before.replicas[1].in_flight = 3, 5
    after = chat(table(tmp_path, twice, table(tmp_path, twice)))
    assert [replica.in_flight for replica in after.replicas] == [0, 0]
    routes = RoutingTable([before])
    after = chat(table(tmp_path, twice, routes))
    assert [replica.in_flight for replica in after.replicas] == [3, 5]


def test_a_queue_stays_and_new_limits_let_it_in(tmp_path: Path) -> None:
    before = table(tmp_path, BEFORE)
    limits = chat(before).limiter
    (first, _), (second, _) = limits.enter("web", 100.0), limits.enter("web", 100.0)
    after = chat(table(tmp_path, BEFORE.replace("streams: 1", "streams: 2"), before))
    assert after.limiter is limits
    assert limits.rules == RouteRules(2, 5, 30.0)
    assert limits.admit() == [second]
    assert (first.stage, second.stage) == (Stage.ADMITTED, Stage.ADMITTED)


def test_what_prefix_learned_stays(tmp_path: Path) -> None:
    before = table(tmp_path, BEFORE)
    prompt = facts(prompt="x" * 5000)
    home = chat(before).balancer.pick(chat(before).replicas, prompt)
    after = chat(table(tmp_path, BEFORE, before))
    assert after.balancer is chat(before).balancer
    for _ in range(4):
        assert after.balancer.pick(after.replicas, prompt).standing is home.standing


@pytest.mark.parametrize(("old", "new", "policy"), [("prefix", "least_busy", LeastBusy), ("random", "prefix", Prefix)])
def test_another_balance_is_another_policy(old: str, new: str, policy: type, tmp_path: Path) -> None:
    before = table(tmp_path, BEFORE.replace("prefix", old))
    after = chat(table(tmp_path, BEFORE.replace("prefix", new), before))
    assert type(after.balancer) is policy


def test_demo_replicas_are_not_probed(tmp_path: Path) -> None:
    route = chat(table(tmp_path, "routes: {chat: {replicas: ['demo://', 'http://gpu:8000']}}"))
    assert [replica.standing.health is None for replica in route.replicas] == [True, False]


def test_parts_that_the_file_turns_off_are_not_there(tmp_path: Path) -> None:
    text = "routes: {chat: {replicas: ['http://gpu:8000'], health: none, breaker: none}}"
    (replica,) = chat(table(tmp_path, text)).replicas
    assert (replica.standing.health, replica.standing.breaker) == (None, None)
