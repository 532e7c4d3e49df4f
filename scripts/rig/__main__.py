"""The command behind scripts/bench.

Exit codes: 0 done, 1 failed (no compiler, a peer that could not be installed, nothing measured), 2 bad usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from scripts.rig.installation import INSTALLABLE, CannotInstall, install
from scripts.rig.machine import rigs_core
from scripts.rig.native_programs import CannotBuild, native_program
from scripts.rig.page import write_page
from scripts.rig.peer import Peer
from scripts.rig.peers import all_peers
from scripts.rig.places import PAGE, PLOT, kept
from scripts.rig.plan import plan
from scripts.rig.plot import plot
from scripts.rig.results import Results, load
from scripts.rig.rounds import carry_out
from scripts.rig.scenarios import BY_NAME, SCENARIOS, Scenario
from scripts.rig.table import tables

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
Thing = TypeVar("Thing")


class BadUsage(Exception):
    """What the user asked for does not exist, for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    try:
        return _work(options)
    except BadUsage as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return BAD_USAGE
    except (CannotBuild, CannotInstall) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _work(options: argparse.Namespace) -> int:
    if options.install_peers is not None:
        installable = {name: name for name in INSTALLABLE}
        install(
            _named(options.install_peers, installable, "installable peer") if options.install_peers else installable
        )
        return DONE
    if options.results is not None:
        results = load(options.results)
        print(tables(results))
    else:
        results = _run(options)
    if not results.measurements:
        return FAILED
    if options.write_docs:
        write_page(results, PAGE, PLOT)
    return DONE


def _run(options: argparse.Namespace) -> Results:
    chosen = plan(_peers(options.peers, options.gateway_args), _scenarios(options.scenarios), options.rounds)
    for name in ("upstream", "loadgen"):
        native_program(name)
    folder: Path = options.out or kept("results", time.strftime("%Y%m%d-%H%M%S"))
    folder.mkdir(parents=True, exist_ok=True)
    names = ", ".join(peer.name for peer in chosen.peers)
    print(f"{names}: rounds: {chosen.rounds}; about {chosen.seconds() / 60:.1f} minutes", file=sys.stderr)
    for peer in chosen.cut_short():
        print(f"{peer.name} starts slowly: only the essential; --rounds 1 gives it all scenarios", file=sys.stderr)
    with rigs_core():
        results = carry_out(chosen, lambda so_far: so_far.save(folder / "results.json"))
    (folder / "table.md").write_text(tables(results), encoding="utf-8")
    (folder / "plot.svg").write_text(plot(results), encoding="utf-8")
    print(tables(results))
    print(f"results.json, table.md and plot.svg are in {folder}", file=sys.stderr)
    return results


def _peers(named: str | None, gateway_arguments: str) -> list[Peer]:
    peers = all_peers(gateway_arguments)
    if named is None:
        return [peer for peer in peers.values() if peer.usual and peer.is_installed]
    chosen = _named(named.split(","), peers, "peer")
    missing = [peer.name for peer in chosen if not peer.is_installed]
    if missing:
        raise BadUsage(f"not installed: {', '.join(missing)}; scripts/bench --install-peers {' '.join(missing)}")
    return chosen


def _scenarios(named: str | None) -> list[Scenario]:
    if named is None:
        return [scenario for scenario in SCENARIOS if scenario.usual]
    if named == "all":
        return [scenario for scenario in SCENARIOS if scenario.name != "S0"]
    return _named(named.split(","), BY_NAME, "scenario")


def _named(named: Sequence[str], things: dict[str, Thing], what: str) -> list[Thing]:
    names = [name.strip() for name in named if name.strip()]
    unknown = [name for name in names if name not in things]
    if unknown or not names:
        raise BadUsage(f"no {what} is called {', '.join(unknown) or 'nothing'}; there are {', '.join(things)}")
    return [things[name] for name in names]


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that what was started is ended


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the gateway next to other proxies on this machine. Run it while nothing else runs.",
        epilog="Scenarios: " + "; ".join(f"{scenario.name}: {scenario.title}" for scenario in SCENARIOS),
    )
    add = parser.add_argument
    add("--install-peers", nargs="*", metavar="NAME", help=f"install these, or all: {', '.join(INSTALLABLE)}")
    add("--peers", metavar="A,B", help=f"left out: the usual ones that are installed, of {', '.join(all_peers())}")
    add("--scenarios", metavar="A,B", help="left out: the usual ones; all: every one of them")
    add("--rounds", type=_count, metavar="N", help="left out: 3, or fewer where those would take over five minutes")
    add("--out", type=Path, metavar="DIR", help="where results.json, table.md and plot.svg go")
    add("--gateway-args", default="", metavar="ARGS", help="more arguments for `penstock serve`")
    add("--results", type=Path, metavar="FILE", help="show an earlier run's results.json instead of measuring")
    add("--write-docs", action="store_true", help="put the table and the plot into docs/performance.md")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
