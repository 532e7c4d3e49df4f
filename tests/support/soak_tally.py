"""What the clients of a soak ask for, what they were told, and whether that is what they had to be told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from tests.support.fate import BROKEN_OFF, Fate

ROUTES = ("main", "tight")
SHED = {"queue_full", "queue_timeout"}
"""What the route `tight` may say instead."""
LEAVES = 0.4
"""So many do not wait for the end."""

Departure = Literal["stays", "closes", "aborts", "cancels"]


@dataclass(frozen=True, slots=True)
class Asking:
    """One request. `departure`: what its client does after `patience_s`, if there is no end by then. What can be
    cancelled streams."""

    fate: Fate
    route: str
    streaming: bool
    departure: Departure
    patience_s: float | None

    @classmethod
    def drawn(cls, rng: Random, departures: tuple[Departure, ...]) -> Asking:
        fate, streaming = Fate.drawn(rng), "cancels" in departures or rng.random() < 0.85
        departure: Departure = rng.choice(departures) if rng.random() < LEAVES else "stays"
        patience_s = None if departure == "stays" else rng.uniform(0.1, 8.0)
        route = rng.choices(ROUTES, (9, 1))[0]
        return cls(fate if streaming else fate.in_one_piece(), route, streaming, departure, patience_s)

    def chat(self, *, stream: bool = True) -> dict[str, Any]:
        return {"model": self.route, "messages": self.prompt(), "stream": stream}

    def prompt(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.fate.prompt}]


@dataclass(slots=True)
class Told:
    """`said`: the text of each content event; `errors`: the codes of the errors; `ended`: the protocol's own end came.
    `left`: the client did not wait for either, or took its request back."""

    said: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ended: bool = False
    left: bool = False

    @property
    def is_over(self) -> bool:
        return self.ended or bool(self.errors)


@dataclass(slots=True)
class Tally:
    """`outcomes` counts by dialect and outcome; `flaws` are what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    flaws: list[str] = field(default_factory=list)

    def add(self, dialect: str, asking: Asking, told: Told) -> None:
        outcome = "left" if told.left else "ended" if told.ended else "failed"
        self.outcomes[f"{dialect} {outcome}"] += 1
        if (flaw := _flaw(asking, told)) is not None:
            self.flaw(f"{dialect}: {flaw}: {asking} was told {told}")

    def flaw(self, text: str) -> None:
        self.flaws.append(text)


def _flaw(asking: Asking, told: Told) -> str | None:
    """What is wrong with what the client was told, if anything is."""
    fate = asking.fate
    if told.said != fate.said[: len(told.said)]:
        return "not the model's words"
    if told.left:
        return None
    if told.ended == bool(told.errors) or len(told.errors) > 1:
        return "not exactly one end"
    if asking.route == "tight" and not told.said and told.errors and told.errors[0] in SHED:
        return None
    if told.ended:
        return None if fate.end == "done" and told.said == fate.said else "looks complete"
    if fate.end == "done" or told.errors != [BROKEN_OFF[fate.end]]:
        return "another error"
    if asking.streaming and fate.end != "reset" and told.said != fate.said:
        return "words that the model said are missing"
    return None
