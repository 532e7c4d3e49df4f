"""A run's CPU figures as bars, in SVG written by hand: a panel for each scenario that is compared with nginx.

A bar that is many times as long as the next one is cut, or nothing else could be told apart.
"""

from __future__ import annotations

from html import escape

from scripts.rig.peers import DIRECT, REFERENCE
from scripts.rig.results import Results
from scripts.rig.scenarios import Scenario

WIDTH = 760
NAMES_WIDTH = 120
NUMBERS_WIDTH = 170
BAR_HEIGHT, BAR_PITCH, TITLE_HEIGHT, MARGIN = 18, 26, 34, 20
CUT_TIMES = 4.0
"""A bar so many times as long as the next shorter one is cut, and those that are longer still."""
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1d2430 }
  .title { font-weight: 600 }
  .number { font-variant-numeric: tabular-nums; paint-order: stroke; stroke: #fff; stroke-width: 4px }
  .bar { fill: #9aa7b8 }
  .ours { fill: #2563c9 }
  .line { stroke: #c05621; stroke-width: 1.5; stroke-dasharray: 4 3 }
  .cut { stroke: #fff; stroke-width: 3 }
"""


def plot(results: Results) -> str:
    """The whole drawing; a drawing without panels when nothing was compared."""
    scenarios = [scenario for scenario in results.scenarios if scenario.figure.compared]
    parts: list[str] = []
    top = MARGIN
    for scenario in scenarios:
        panel, height = _panel(results, scenario, top)
        parts += panel
        top += height + MARGIN
    box = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    background = f'<rect width="{WIDTH}" height="{top}" rx="8" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"><title>CPU next to {REFERENCE}</title>'
    return "\n".join([head, f"<style>{STYLE}</style>", background, *parts, "</svg>", ""])


def _panel(results: Results, scenario: Scenario, top: int) -> tuple[list[str], int]:
    """A scenario's elements, and how high they are."""
    figures = {peer: results.figure(peer, scenario.name) for peer in results.peers if peer != DIRECT}
    shown = {peer: value for peer, value in figures.items() if value is not None}
    parts = [_text(MARGIN, top + 14, f"{scenario.name}: {scenario.title}, {scenario.figure.unit}", "title")]
    if not shown:
        return parts, TITLE_HEIGHT
    longest = _longest_whole(sorted(shown.values()))
    scale = (WIDTH - 2 * MARGIN - NAMES_WIDTH - NUMBERS_WIDTH) / (longest or 1.0)
    height = TITLE_HEIGHT + len(shown) * BAR_PITCH
    if REFERENCE in shown:
        x = MARGIN + NAMES_WIDTH + shown[REFERENCE] * scale
        ends = f'x1="{x:.1f}" y1="{top + TITLE_HEIGHT - 6}" x2="{x:.1f}" y2="{top + height - 2}"'
        parts.append(f'<line class="line" {ends}/>')
    for position, (peer, value) in enumerate(shown.items()):
        parts += _bar(results, scenario, peer, value, top + TITLE_HEIGHT + position * BAR_PITCH, scale, longest)
    return parts, height


def _longest_whole(ascending: list[float]) -> float:
    """The largest of these that is not many times the one before it."""
    longest = ascending[0]
    for value in ascending:
        if value > longest * CUT_TIMES:
            break
        longest = value
    return longest


def _bar(
    results: Results, scenario: Scenario, peer: str, value: float, top: int, scale: float, longest: float
) -> list[str]:
    left, width = MARGIN + NAMES_WIDTH, min(value, longest) * scale
    kind = "bar ours" if peer.startswith("gateway") else "bar"
    parts = [
        _text(MARGIN, top + 14, peer),
        f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
    ]
    if value > longest:
        x = left + width - 16
        parts.append(f'<line class="cut" x1="{x - 4:.1f}" y1="{top + BAR_HEIGHT}" x2="{x + 4:.1f}" y2="{top}"/>')
    ratio = results.ratio(peer, scenario.name)
    number = f"{value:,.{scenario.figure.digits}f}" + (f"  ({ratio:,.2f} × {REFERENCE})" if ratio is not None else "")
    parts.append(_text(left + width + 8, top + 14, number, "number"))
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escape(text)}</text>'
