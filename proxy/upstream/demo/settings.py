"""How long and how fast the built-in model answers, read from its URL: `demo://?tokens=200&interval=20ms&first=100ms`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from proxy.config.units import parse_count, parse_duration

MOST_TOKENS = 1_000_000
KEYS = ("tokens", "interval", "first")


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """`tokens` None: a length that fits the prompt. Times are seconds: before the first token, and between two."""

    tokens: int | None = None
    interval_s: float = 0.02
    first_s: float = 0.1

    @classmethod
    def parse(cls, url: str) -> DemoSettings:
        """Read a `demo://` URL; ValueError says which part of the query is wrong and what it may be."""
        given = parse_qsl(urlsplit(url).query, keep_blank_values=True)
        query = dict(given)
        if len(query) < len(given):
            raise ValueError("demo:// takes each of tokens, interval and first once")
        for key in query:
            if key not in KEYS:
                raise ValueError(f"demo:// knows no {key!r}; it takes tokens, interval and first")
        return cls(
            tokens=_tokens(query["tokens"]) if "tokens" in query else cls().tokens,
            interval_s=_seconds("interval", query["interval"]) if "interval" in query else cls().interval_s,
            first_s=_seconds("first", query["first"]) if "first" in query else cls().first_s,
        )

    def duration_s(self, tokens: int) -> float:
        """Seconds from the request to the last of that many tokens."""
        return self.first_s + self.interval_s * max(0, tokens - 1)


def _tokens(text: str) -> int:
    try:
        tokens = parse_count(text)
    except ValueError as exc:
        raise ValueError(f"tokens in demo:// {exc}") from exc
    if not 1 <= tokens <= MOST_TOKENS:
        raise ValueError(f"tokens in demo:// must be from 1 to {MOST_TOKENS}")
    return tokens


def _seconds(key: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise ValueError(f"{key} in demo:// {exc}") from exc
