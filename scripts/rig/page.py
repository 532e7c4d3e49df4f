"""Puts a run's table and plot into docs/performance.md; the words around them are the page's own."""

from __future__ import annotations

from pathlib import Path

from scripts.rig.plot import plot
from scripts.rig.results import Results
from scripts.rig.table import tables

BEGIN = "<!-- scripts/bench --write-docs writes from here -->"
END = "<!-- to here -->"


def write_page(results: Results, page: Path, plot_file: Path) -> None:
    """Replace what stands between the page's two marks. Raises ValueError when it has no such marks."""
    text = page.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{page.name} has no place for them: it needs the lines {BEGIN} and {END}")
    plot_file.write_text(plot(results), encoding="utf-8")
    shown = f"![CPU of each, next to nginx]({plot_file.name})\n\n{tables(results)}"
    page.write_text(f"{before}{BEGIN}\n\n{shown}\n{END}{after}", encoding="utf-8")
