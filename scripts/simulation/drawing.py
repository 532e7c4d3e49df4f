"""Drawings of figures, in SVG written by hand: panels of bars or of lines, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, MARGIN = 760, 20
NAMES_WIDTH, NUMBERS_WIDTH = 190, 90
BAR_HEIGHT, BAR_PITCH, TITLE_HEIGHT = 18, 26, 34
LINES_HEIGHT, AXIS_WIDTH, AXIS_HEIGHT = 190, 46, 22
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1d2430 }
  .title { font-weight: 600 }
  .small { font-size: 11px; fill: #5a6575 }
  .bar { fill: #9aa7b8 }
  .ours { fill: #2563c9 }
  .axis { stroke: #d5dae2 }
  .line { fill: none; stroke-width: 2 }
  .line0 { stroke: #9aa7b8 } .line1 { stroke: #c05621 } .line2 { stroke: #2563c9 } .line3 { stroke: #2f855a }
  .name0 { fill: #6b7889 } .name1 { fill: #c05621 } .name2 { fill: #2563c9 } .name3 { fill: #2f855a }
"""


@dataclass(frozen=True, slots=True)
class Bars:
    """Values by name; `ours` are the names drawn in colour, `form` how a value is written."""

    title: str
    values: Mapping[str, float]
    ours: Sequence[str] = ()
    form: str = "{:.2f}"

    @property
    def height(self) -> int:
        return TITLE_HEIGHT + len(self.values) * BAR_PITCH

    def elements(self, top: int) -> list[str]:
        longest = max(self.values.values()) or 1.0
        scale = (WIDTH - 2 * MARGIN - NAMES_WIDTH - NUMBERS_WIDTH) / longest
        parts = [_text(MARGIN, top + 14, self.title, "title")]
        for number, (name, value) in enumerate(self.values.items()):
            y, left, width = top + TITLE_HEIGHT + number * BAR_PITCH, MARGIN + NAMES_WIDTH, value * scale
            kind = "bar ours" if name in self.ours else "bar"
            parts += [
                _text(MARGIN, y + 14, name),
                f'<rect class="{kind}" x="{left}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
                _text(left + width + 8, y + 14, self.form.format(value)),
            ]
        return parts


@dataclass(frozen=True, slots=True)
class Lines:
    """Series by name, a value for each second."""

    title: str
    series: Mapping[str, Sequence[float]]
    seconds: int

    @property
    def height(self) -> int:
        return TITLE_HEIGHT + 18 * len(self.series) + LINES_HEIGHT + AXIS_HEIGHT

    def elements(self, top: int) -> list[str]:
        highest = _round_above(max(max(values) for values in self.series.values()))
        left, right = MARGIN + AXIS_WIDTH, WIDTH - MARGIN
        upper = top + TITLE_HEIGHT + 18 * len(self.series)
        lower = upper + LINES_HEIGHT
        parts = [_text(MARGIN, top + 14, self.title, "title")]
        for quarter in range(5):
            y = lower - LINES_HEIGHT * quarter / 4
            parts.append(f'<line class="axis" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            parts.append(_text(MARGIN, y + 4, f"{highest * quarter / 4:g}", "small"))
        for second in range(0, self.seconds + 1, 10):
            x = left + (right - left) * second / self.seconds
            parts.append(_text(x - 6, lower + 16, f"{second} s" if second else "0", "small"))
        for number, (name, values) in enumerate(self.series.items()):
            step = (right - left) / self.seconds
            points = " ".join(
                f"{left + (second + 0.5) * step:.1f},{lower - LINES_HEIGHT * value / highest:.1f}"
                for second, value in enumerate(values[: self.seconds])
            )
            parts.append(f'<polyline class="line line{number}" points="{points}"/>')
            parts.append(_text(left, top + TITLE_HEIGHT + 18 * number, name, f"name{number}"))
        return parts


def drawing(title: str, panels: Sequence[Bars | Lines]) -> str:
    """The whole file."""
    parts: list[str] = []
    top = MARGIN
    for panel in panels:
        parts += panel.elements(top)
        top += panel.height + MARGIN
    box = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"><title>{escape(title)}</title>'
    background = f'<rect width="{WIDTH}" height="{top}" rx="8" fill="#fff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", background, *parts, "</svg>", ""])


def _round_above(value: float) -> float:
    step = 10.0 ** max(0, len(str(int(value))) - 1)
    return step * (int(value / step) + 1)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escape(text)}</text>'
