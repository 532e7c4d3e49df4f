"""What a run found: measurements, failures, the machine; kept as JSON, read as medians over the rounds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.rig.peers import DIRECT, REFERENCE
from scripts.rig.scenarios import BY_NAME, SCENARIOS, Figure, Scenario


@dataclass(frozen=True, slots=True)
class Measurement:
    """One scenario, one peer, one round. `values` by name, `_s`, `_us` and `_bytes` being their units; `kinds` counts
    what was wrong."""

    peer: str
    scenario: str
    round: int
    values: dict[str, float]
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a peer has no measurements in a round."""

    peer: str
    round: int
    why: str


@dataclass(slots=True)
class Results:
    machine: dict[str, str | int | bool]
    when: str
    rounds: int
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def peers(self) -> list[str]:
        """The peers that were measured, in the order in which they were."""
        return list(dict.fromkeys(measurement.peer for measurement in self.measurements))

    @property
    def scenarios(self) -> list[Scenario]:
        seen = {measurement.scenario for measurement in self.measurements}
        return [scenario for scenario in SCENARIOS if scenario.name in seen]

    def of(self, peer: str, scenario: str) -> list[Measurement]:
        return [found for found in self.measurements if found.peer == peer and found.scenario == scenario]

    def median(self, peer: str, scenario: str, value: str) -> float | None:
        """Over the rounds; None where it was never measured."""
        return _median(found.values.get(value) for found in self.of(peer, scenario))

    def figure(self, peer: str, scenario: str) -> float | None:
        """The median of what the scenario is about, in the figure's unit."""
        figure: Figure = BY_NAME[scenario].figure
        value = self.median(peer, scenario, figure.value)
        if figure.over_direct:
            direct = self.median(DIRECT, scenario, figure.value)
            value = value - direct if value is not None and direct is not None and peer != DIRECT else None
        return value / figure.divisor if value is not None else None

    def ratio(self, peer: str, scenario: str) -> float | None:
        """The figure next to nginx's of the same run; None for scenarios that are not compared so."""
        own, reference = self.figure(peer, scenario), self.figure(REFERENCE, scenario)
        return own / reference if BY_NAME[scenario].figure.compared and own is not None and reference else None

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def load(file: Path) -> Results:
    """What `save` has written."""
    told = json.loads(file.read_text(encoding="utf-8"))
    measurements = [Measurement(**one) for one in told.pop("measurements")]
    failures = [Failure(**one) for one in told.pop("failures")]
    return Results(**told, measurements=measurements, failures=failures)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
