"""The command behind scripts/simulate: draws what the routing policies are worth, in simulated time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.simulation.figures import figures

DOCS = Path(__file__).parents[2] / "docs"
SEEDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Draws docs/balancing-*.svg.")
    parser.add_argument("--into", type=Path, default=DOCS, metavar="FOLDER", help="where to (default: docs)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs that a median is of (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name, svg in figures(options.seeds):
        path = options.into / f"balancing-{name}.svg"
        path.write_text(svg, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
