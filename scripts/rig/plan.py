"""Which peers are measured by which scenarios in which round, and how long that will take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.rig.peer import Peer
from scripts.rig.scenarios import Scenario, Watched

USUAL_ROUNDS = 3
USUAL_MINUTES = 4.5
"""What a run may take by its estimate when nobody says how many rounds there shall be."""
SLOW_START_S = 10.0
SCENARIO_OVERHEAD_S = 0.7


@dataclass(frozen=True, slots=True)
class Plan:
    """`turns` in order: A B C, A B C, ... so that whatever changes on the machine meanwhile hits all alike.

    `shortened`: peers that start slowly get the essential scenarios alone.
    """

    peers: Sequence[Peer]
    scenarios: Sequence[Scenario]
    rounds: int
    shortened: bool = False

    def turns(self) -> Iterator[tuple[int, Peer, list[Scenario]]]:
        for round_number in range(self.rounds):
            for peer in self.peers:
                wanted = self._scenarios_of(peer)
                yield round_number, peer, [scenario for scenario in wanted if not (scenario.once and round_number)]

    def cut_short(self) -> list[Peer]:
        """The peers that do not get all scenarios."""
        return [peer for peer in self.peers if self.shortened and peer.usual_start_s > SLOW_START_S]

    def seconds(self) -> float:
        """About how long it takes."""
        return sum(
            (peer.usual_start_s if peer.command is not None else 1.0)
            + sum(_scenario_s(scenario, peer) for scenario in scenarios)
            for _, peer, turn in self.turns()
            for scenarios in starts(turn)
        )

    def _scenarios_of(self, peer: Peer) -> list[Scenario]:
        some = peer in self.cut_short()
        said_of_it = [scenario for scenario in self.scenarios if _concerns(peer, scenario)]
        return [scenario for scenario in said_of_it if scenario.essential] if some else said_of_it


def starts(scenarios: Sequence[Scenario]) -> list[list[Scenario]]:
    """What is measured of one start of a program, for each start that these take."""
    together = [scenario for scenario in scenarios if not scenario.wants_fresh_program]
    alone = [[scenario] for scenario in scenarios if scenario.wants_fresh_program]
    return [together, *alone] if together else alone


def plan(peers: Sequence[Peer], scenarios: Sequence[Scenario], rounds: int | None) -> Plan:
    """As many rounds as asked for; else as many of the usual ones as fit the usual time, or one that is shortened."""
    if rounds is not None:
        return Plan(peers, scenarios, rounds)
    for fewer in range(USUAL_ROUNDS, 0, -1):
        candidate = Plan(peers, scenarios, fewer)
        if candidate.seconds() <= USUAL_MINUTES * 60:
            return candidate
    return Plan(peers, scenarios, 1, shortened=True)


def _concerns(peer: Peer, scenario: Scenario) -> bool:
    if peer.command is None:
        return scenario.watched is Watched.CPU
    return scenario.over_http if peer.websocket is None else scenario.over_websocket


def _scenario_s(scenario: Scenario, peer: Peer) -> float:
    if scenario.watched is Watched.START:
        return peer.usual_start_s if scenario.name == "import" and peer.imports else 0.0
    return scenario.usual_s + SCENARIO_OVERHEAD_S
