"""What an answer's head says."""

from __future__ import annotations

from msgspec import Struct


class AnswerHead(Struct, frozen=True):
    """Status and headers of an answer; names as sent, values as text whose bytes round-trip (surrogateescape)."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The first value of the header `name` (lower case), or None."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None
