"""Instruments: counters, gauges and histograms, and their figures: plain data that travels between processes, and adds
up.

Recording is an attribute's or a method's work, with no lock and no look-up by name: who records keeps what `of` gives.
Which families there are is `families`'; how figures read as text, `exposition`'s.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Final, Generic, Literal, Protocol, TypeVar

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram"]
Together = Literal["sum", "max", "min"]
Labels = tuple[str, ...]
Figures = dict[str, dict[Labels, list[float]]]
"""What instruments have measured: by the family's name, then by the labels' values. A counter or a gauge is one number;
a histogram is how many fell into each bucket (not cumulated, the last one is without end), then the sum of all."""

_TOGETHER: Final[dict[Together, Callable[[Iterable[float]], float]]] = {"sum": sum, "max": max, "min": min}


class Family(Struct, frozen=True):
    """Metrics of one name. `bounds`: a histogram's buckets, upper ends included. `together`: what makes one figure of
    those of several processes; of gauges only, the others add up."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    together: Together = "sum"


class Measured(Protocol):
    """What an instrument has for one set of labels."""

    def figures(self) -> list[float]:
        """Its numbers; none: nothing to tell yet."""
        ...


class Value:
    """A counter or a gauge: add to `value`, or set it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def figures(self) -> list[float]:
        return [self.value]


class Histogram:
    """How many observations fell into which bucket. It is told only once something was observed."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """`value` was seen, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def figures(self) -> list[float]:
        return [*self._counts, self._sum] if any(self._counts) else []


M = TypeVar("M", bound=Measured)


class Instrument(Generic[M]):
    """A family's metrics, one for each set of labels that was asked for."""

    __slots__ = ("_make", "_measured", "family")

    def __init__(self, family: Family, make: Callable[[], M]) -> None:
        self.family = family
        self._make = make
        self._measured: dict[Labels, M] = {}

    def of(self, *labels: str) -> M:
        """The metric with these values of the family's labels, in their order. Keep it, where it is used often."""
        measured = self._measured.get(labels)
        if measured is None:
            assert len(labels) == len(self.family.labels), self.family.name
            measured = self._measured[labels] = self._make()
        return measured

    def forget(self) -> None:
        """Begin anew: a gauge of things that may have gone."""
        self._measured.clear()

    def figures(self) -> dict[Labels, list[float]]:
        return {labels: figures for labels, each in self._measured.items() if (figures := each.figures())}


def values(family: Family) -> Instrument[Value]:
    """The counters or gauges of this family."""
    return Instrument(family, Value)


def histograms(family: Family) -> Instrument[Histogram]:
    return Instrument(family, lambda: Histogram(family.bounds))


def merged(families: Iterable[Family], parts: Iterable[Figures]) -> Figures:
    """The figures of several processes as those of one. A family that is not among `families` is left out."""
    every = list(parts)
    return {family.name: _together(family, [part.get(family.name, {}) for part in every]) for family in families}


def _together(family: Family, parts: list[dict[Labels, list[float]]]) -> dict[Labels, list[float]]:
    collected: dict[Labels, list[list[float]]] = {}
    for part in parts:
        for labels, figures in part.items():
            collected.setdefault(labels, []).append(figures)
    add = _TOGETHER[family.together]
    return {labels: [add(column) for column in zip(*rows, strict=True)] for labels, rows in collected.items()}


def without_gauges(families: Iterable[Family], figures: Figures) -> Figures:
    """What stays true of a process that has gone: what it counted."""
    return {family.name: figures.get(family.name, {}) for family in families if family.kind != "gauge"}


def to_json(figures: Figures) -> bytes:
    """For another process; `from_json` is the way back."""
    return json.dumps({name: list(metrics.items()) for name, metrics in figures.items()}).encode()


def from_json(data: object) -> Figures:
    """The figures that `to_json` wrote: its JSON, decoded. Of our own processes only: nothing is checked."""
    assert isinstance(data, dict)
    return {name: {tuple(labels): figures for labels, figures in metrics} for name, metrics in data.items()}
