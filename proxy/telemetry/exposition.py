"""Figures as Prometheus reads them: its text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from proxy.telemetry.metrics import Family, Figures, Labels

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_IN_LABEL: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_IN_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def exposition(families: Iterable[Family], figures: Figures) -> str:
    """The whole page: each family with what it means, in the order given, its metrics in the order of their labels."""
    return "".join(line + "\n" for family in families for line in _lines(family, figures.get(family.name, {})))


def _lines(family: Family, metrics: dict[Labels, list[float]]) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help.translate(_IN_HELP)}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, numbers in sorted(metrics.items()):
        pairs = [f'{name}="{value.translate(_IN_LABEL)}"' for name, value in zip(family.labels, labels, strict=True)]
        if family.kind == "histogram":
            yield from _histogram(family, pairs, numbers)
        else:
            yield f"{family.name}{_braced(pairs)} {numbers[0]}"


def _histogram(family: Family, pairs: list[str], numbers: list[float]) -> Iterator[str]:
    """Buckets count what is at most their bound, all smaller ones included; the last one counts everything."""
    *counts, total = numbers
    up_to = list(accumulate(counts))
    bounds = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
    for bound, count in zip(bounds, up_to, strict=True):
        up_to_bound = _braced([*pairs, f'le="{bound}"'])
        yield f"{family.name}_bucket{up_to_bound} {count}"
    yield f"{family.name}_sum{_braced(pairs)} {total}"
    yield f"{family.name}_count{_braced(pairs)} {up_to[-1]}"


def _braced(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""
