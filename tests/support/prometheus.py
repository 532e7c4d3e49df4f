"""What `/metrics` says, as Prometheus' own parser reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.support.raw_client import ask, get

Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Page:
    """`samples` by name and labels; `kinds` and `helps` by family, where the parser takes `_total` off counters."""

    text: str
    samples: Mapping[Sample, float]
    kinds: Mapping[str, str]
    helps: Mapping[str, str]

    def get(self, name: str, **labels: str) -> float | None:
        """The sample with exactly these labels; None: there is none."""
        return self.samples.get((name, frozenset(labels.items())))

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels, and maybe others."""
        return sum(
            value
            for (sample, said), value in self.samples.items()
            if sample == name and frozenset(labels.items()) <= said
        )


def read(text: str) -> Page:
    """Fails on what Prometheus would refuse, and on a sample that is given twice."""
    samples: dict[Sample, float] = {}
    kinds: dict[str, str] = {}
    helps: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        kinds[family.name], helps[family.name] = family.type, family.documentation
        for sample in family.samples:
            at = (sample.name, frozenset(sample.labels.items()))
            assert at not in samples, f"{sample} is given twice"
            samples[at] = sample.value
    return Page(text, samples, kinds, helps)


async def scrape(port: int, *headers: str) -> Page:
    """What this port's `/metrics` says now."""
    answer = await ask(port, get("/metrics", *headers), "GET")
    assert answer.status == 200, answer
    return read(answer.body.decode())
