"""Sessions stay where they are: evenly spread, unmoved by others' going, and not at any price."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.load import IDLE
from proxy.routing.balancing.sticky import Sticky
from proxy.routing.replica import Replica
from scripts.simulation.scenarios import conversations, moved
from tests.support.replicas import busy, facts, replicas

SESSIONS = [f"session-{number}" for number in range(2000)]


def placed(there: list[Replica], session: str) -> int:
    return Sticky("key").pick(there, facts(key=session)).index


def test_a_session_keeps_its_replica() -> None:
    balancer, there = Sticky("session"), replicas(5)
    picked = set()
    for number in range(50):
        busy(there, *[(number * 7 + index) % 4 for index in range(5)])
        picked.add(balancer.pick(there, facts(("x-penstock-session", "s-1"), key=f"key-{number}")).index)
    assert len(picked) == 1


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 3, 4], [1] * 12])
def test_sessions_are_spread_by_weight(weights: list[int]) -> None:
    there = replicas(len(weights), weights=weights)
    counts = Counter(placed(there, session) for session in SESSIONS)
    share = len(SESSIONS) / sum(weights)
    assert [counts[index] / share for index in range(len(weights))] == pytest.approx(weights, rel=0.2)


def test_a_replica_that_goes_moves_only_its_own_sessions_and_spreads_them() -> None:
    there = replicas(5)
    before = {session: placed(there, session) for session in SESSIONS}
    after = {session: placed(there[:2] + there[3:], session) for session in SESSIONS}
    assert all(after[session] == home for session, home in before.items() if home != 2)
    spread = Counter(after[session] for session, home in before.items() if home == 2)
    assert min(spread[index] for index in (0, 1, 3, 4)) > 60


def test_counting_modulo_the_servers_would_move_most() -> None:
    there = {count: replicas(count) for count in (7, 8)}
    assert moved(lambda session, servers: placed(there[servers], session), 500, 8) == 0.0
    assert moved(lambda session, servers: sum(session.encode()) % servers, 500, 8) > 0.5


def test_its_place_in_the_file_does_not_matter() -> None:
    there = replicas(4)
    assert all(placed(there, session) == placed(there[::-1], session) for session in SESSIONS[:200])


def test_every_process_agrees() -> None:
    there = replicas(6)
    code = (
        "from tests.support.replicas import facts, replicas\n"
        "from proxy.routing.balancing.sticky import Sticky\n"
        "there = replicas(6)\n"
        "print([Sticky('key').pick(there, facts(key=f'session-{n}')).index for n in range(40)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([placed(there, session) for session in SESSIONS[:40]])


def test_an_overloaded_replica_passes_its_sessions_on_and_gets_them_back() -> None:
    balancer, there = Sticky("key"), replicas(3)
    home = balancer.pick(there, facts(key="web"))
    for replica in there:
        replica.standing.in_flight = 20
    home.standing.in_flight = 40
    second = balancer.pick(there, facts(key="web"))
    assert second is not home
    assert {balancer.pick(there, facts(key="web")) for _ in range(10)} == {second}
    home.standing.in_flight = 20
    assert balancer.pick(there, facts(key="web")) is home


def test_a_few_requests_at_once_are_no_reason_to_move() -> None:
    balancer, there = Sticky("key"), replicas(3)
    home = balancer.pick(there, facts(key="web"))
    home.standing.in_flight = IDLE - 1
    assert balancer.pick(there, facts(key="web")) is home
    home.standing.in_flight = IDLE
    assert balancer.pick(there, facts(key="web")) is not home


def test_one_hot_session_cannot_take_more_than_its_bound() -> None:
    balancer, there = Sticky("key"), replicas(4)
    for _ in range(200):
        balancer.pick(there, facts(key="hot")).standing.in_flight += 1
    counts = sorted(replica.standing.in_flight for replica in there)
    assert sum(counts) == 200
    assert counts[-1] <= 1.25 * 200 / 4 + 1


def test_strangers_go_where_least_is_in_flight() -> None:
    assert Sticky("user").pick(busy(replicas(3), 2, 0, 1), facts()).index == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_people_who_talk_find_their_prompts_computed(seed: int) -> None:
    sticky = conversations(lambda rng: Sticky("user"), seed)
    assert sticky.warm > conversations(lambda rng: LeastBusy(), seed).warm + 0.08
