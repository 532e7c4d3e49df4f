"""Carries out a plan: starts each peer afresh in its turn, measures it, ends it, and goes on when one fails."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from scripts.rig.footprint import import_s, installed_bytes
from scripts.rig.machine import describe, open_files
from scripts.rig.measurement import NotReady, Running, running
from scripts.rig.model_server import ModelServer, model_server
from scripts.rig.peer import Peer
from scripts.rig.places import log_of
from scripts.rig.plan import Plan, starts
from scripts.rig.results import Failure, Measurement, Results
from scripts.rig.scenarios import Scenario, Watched

PAUSE_S = 0.2


def carry_out(plan: Plan, keep: Callable[[Results], None]) -> Results:
    """Everything that was found; `keep` gets it after each turn, so that a run that breaks off leaves what it has."""
    results = Results(describe(), time.strftime("%Y-%m-%d"), plan.rounds)
    most_files = open_files()
    with model_server() as upstream:
        for round_number, peer, turn in plan.turns():
            for scenarios in starts(turn):
                try:
                    _measure(results, round_number, peer, scenarios, upstream, most_files)
                except (NotReady, OSError, subprocess.SubprocessError) as error:
                    why = str(error) if isinstance(error, NotReady) else type(error).__name__
                    results.failures.append(Failure(peer.name, round_number, why))
                    _say(round_number, peer, f"failed: {error} ({log_of(peer.name)})")
                keep(results)
                time.sleep(PAUSE_S)
    return results


def _measure(
    results: Results,
    round_number: int,
    peer: Peer,
    scenarios: Sequence[Scenario],
    upstream: ModelServer,
    most_files: int,
) -> None:
    """One start of a peer, and all that is seen of it."""

    def found(scenario: Scenario, values: dict[str, float], kinds: dict[str, int] | None = None) -> None:
        results.measurements.append(Measurement(peer.name, scenario.name, round_number, values, kinds or {}))
        _say(round_number, peer, _told(scenario, values, kinds or {}))

    with running(peer, upstream) as started:
        at_start = [scenario for scenario in scenarios if scenario.watched is Watched.START]
        for scenario in at_start:
            if (value := _at_start(scenario, peer, started)) is not None:
                found(scenario, {scenario.figure.value: value})
        started.warm_up()
        for scenario in scenarios:
            if scenario in at_start:
                continue
            if scenario.files > most_files:
                why = f"{scenario.name} needs {scenario.files} open files, and {most_files} are allowed"
                results.failures.append(Failure(peer.name, round_number, why))
            else:
                found(scenario, *started.measure(scenario))


def _at_start(scenario: Scenario, peer: Peer, started: Running) -> float | None:
    match scenario.figure.value:
        case "start_s":
            return started.start_s if started.program is not None else None
        case "import_s":
            return import_s(peer)
        case _:
            return installed_bytes(peer)


def _told(scenario: Scenario, values: dict[str, float], kinds: dict[str, int]) -> str:
    figure = scenario.figure
    parts = [scenario.name.ljust(6)]
    if figure.value in values:
        parts.append(f"{values[figure.value] / figure.divisor:,.{figure.digits}f} {figure.unit}")
    if "per_s" in values:
        parts.append(f"{values['per_s']:,.0f}/s")
    parts += [f"{count}x {kind}" for kind, count in kinds.items()]
    return "  ".join(parts)


def _say(round_number: int, peer: Peer, what: str) -> None:
    print(f"{round_number + 1}  {peer.name:14}  {what}", file=sys.stderr, flush=True)
