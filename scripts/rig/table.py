"""A run's results as Markdown: one table of the figures that matter, then one for each scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from scripts.rig.peers import DIRECT, REFERENCE
from scripts.rig.results import Results
from scripts.rig.scenarios import Scenario, Watched

NOTHING = "–"

Column = tuple[str, Callable[[str], str]]
"""A column's head, and what it says of a peer."""


def tables(results: Results) -> str:
    """All of it."""
    details = [scenario for scenario in results.scenarios if scenario.watched is not Watched.START]
    parts = [_machine(results), _overview(results), *(_detail(results, scenario) for scenario in details)]
    parts += [f"{failure.peer}, round {failure.round + 1}: {failure.why}" for failure in results.failures]
    return "\n\n".join(parts) + "\n"


def _machine(results: Results) -> str:
    machine = results.machine
    apart = "the program under test on a core of its own" if machine["cores_apart"] else "everything on one core"
    rounds = f"median of {results.rounds} rounds" if results.rounds > 1 else "one round"
    return (
        f"{results.when}: {machine['cores']} cores ({machine['cpu']}), {machine['kernel']}, "
        f"Python {machine['python']}; {apart}; {rounds}."
    )


def _overview(results: Results) -> str:
    columns = [(_head(scenario), _figure(results, scenario)) for scenario in results.scenarios]
    return _table([peer for peer in results.peers if peer != DIRECT], columns)


def _head(scenario: Scenario) -> str:
    figure = scenario.figure
    more = f" (× {REFERENCE})" if figure.compared else " added" if figure.over_direct else ""
    return f"{scenario.name}: {figure.unit}{more}"


def _figure(results: Results, scenario: Scenario) -> Callable[[str], str]:
    def cell(peer: str) -> str:
        shown = _number(results.figure(peer, scenario.name), scenario.figure.digits)
        ratio = results.ratio(peer, scenario.name)
        return shown if ratio is None else f"{shown} ({ratio:.2f})"

    return cell


def _detail(results: Results, scenario: Scenario) -> str:
    """How much went through, how long it was on its way, what was not as it should be."""

    def value(name: str, digits: int, divisor: float = 1.0) -> Callable[[str], str]:
        def cell(peer: str) -> str:
            found = results.median(peer, scenario.name, name)
            return _number(found / divisor if found is not None else None, digits)

        return cell

    unit = scenario.figure.unit.partition("/")[2]
    columns: list[Column] = [(_head(scenario).partition(": ")[2], _figure(results, scenario))]
    if scenario.watched is Watched.CPU:
        spread = (f"least–most {scenario.figure.unit}", _spread(results, scenario))
        columns += [spread] if scenario.figure.compared else []
        columns += [(f"{unit or 'event'}s/s", value("per_s", 0))]
        columns += [(f"{quantile} µs", value(f"{quantile}_us", 0)) for quantile in ("p50", "p90", "p99")]
        columns += [("its core busy", value("busy", 2)), ("the rig's core busy", value("rig_busy", 2))]
    if scenario.watched is Watched.MEMORY:
        columns += [("at most MB", value("memory_bytes", 1, 1e6))]
    if scenario.clients is not None and scenario.clients.idle:
        columns += [("open", value("open", 0))]
    else:
        columns += [("right", value("right", 0)), ("cut", value("cut", 0))]
    columns += [("wrong", _wrong(results, scenario))]
    peers = [peer for peer in results.peers if results.of(peer, scenario.name)]
    return f"**{scenario.name}**: {scenario.title}\n\n{_table(peers, columns)}"


def _spread(results: Results, scenario: Scenario) -> Callable[[str], str]:
    def cell(peer: str) -> str:
        name, digits = scenario.figure.value, scenario.figure.digits
        found = [one.values[name] for one in results.of(peer, scenario.name) if name in one.values]
        return f"{_number(min(found), digits)}–{_number(max(found), digits)}" if found else NOTHING

    return cell


def _wrong(results: Results, scenario: Scenario) -> Callable[[str], str]:
    """Over all rounds, each kind with its number."""

    def cell(peer: str) -> str:
        kinds: dict[str, int] = {}
        for measurement in results.of(peer, scenario.name):
            for kind, count in measurement.kinds.items():
                kinds[kind] = kinds.get(kind, 0) + count
        return ", ".join(f"{count}× {kind}" for kind, count in kinds.items()) or "0"

    return cell


def _table(peers: Iterable[str], columns: list[Column]) -> str:
    heads = ["", *(head for head, _ in columns)]
    lines = [_line(heads), "|---|" + "--:|" * len(columns)]
    lines += [_line([peer, *(cell(peer) for _, cell in columns)]) for peer in peers]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"
