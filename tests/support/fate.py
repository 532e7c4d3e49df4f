"""What will become of an answer, said in its prompt: the model in `fated_model` does as it is told, and so the client
knows what it must see."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from random import Random

End = Literal["done", "reset", "close", "stall", "error", "status", "silence"]

BROKEN_OFF: dict[End, str] = {
    "reset": "upstream_truncated",
    "close": "upstream_truncated",
    "stall": "upstream_idle",
    "error": "model_broke",
    "status": "model_broke",
    "silence": "first_token_timeout",
}
"""The code of the one error that the client is told."""


@dataclass(frozen=True, slots=True)
class Fate:
    """`words` events, `pause_s` before each, and then its `end`: its protocol's own (done), a reset or a close of the
    connection, nothing more (stall), or an event that says it failed (error). Without a word: status 500 (status), or
    not even a head (silence)."""

    words: int
    pause_s: float
    end: End

    @property
    def prompt(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, prompt: str) -> Fate:
        return cls(**json.loads(prompt))

    @property
    def said(self) -> list[str]:
        """What a client that stays hears."""
        return [word(number) for number in range(self.words)]

    @classmethod
    def drawn(cls, rng: Random) -> Fate:
        """A slow one. Six of ten end well, each of the others in its own way."""
        ends: tuple[End, ...] = ("done", "reset", "close", "stall", "error", "status", "silence")
        end = rng.choices(ends, (60, 10, 8, 6, 6, 6, 4))[0]
        return cls(0 if end in ("status", "silence") else rng.randint(2, 6), rng.uniform(1.5, 4.0), end)

    def in_one_piece(self) -> Fate:
        """The same for an answer that does not stream, in which nothing can be told before its end."""
        match self.end:
            case "stall":
                return Fate(0, self.pause_s, "silence")
            case "error":
                return Fate(0, self.pause_s, "status")
        return Fate(min(self.words, 2), self.pause_s, self.end)


def word(number: int) -> str:
    """The `number`th event's text, so that a lost, doubled or foreign one shows."""
    return f"w{number} "
