"""A replica's own credentials taken out of what it says when it fails: such answers like to quote what they were asked.

Only for error answers and error events; no ordinary event comes by here.
"""

from __future__ import annotations

import json
from dataclasses import replace

from proxy.protocols.failure import Failure
from proxy.routing.replica import Headers
from proxy.wire.headers import CREDENTIAL_HEADERS
from proxy.wire.sse import Event

MASK = "***"
SHORTEST_KEY = 4
SHORTEST_VALUE = 8
"""What is shorter is a placeholder or a word that may stand anywhere; of a key's own headers, and of all others."""


class Redaction:
    """Puts `***` in place of the values of `headers`, a replica's own: all of them are secrets."""

    __slots__ = ("_bytes", "_texts")

    def __init__(self, headers: Headers) -> None:
        found = {secret for name, value in headers for secret in _secrets(name.lower(), value)}
        self._texts = sorted(found, key=len, reverse=True)  # a shorter one may be part of a longer one
        self._bytes = [
            spelling.encode() for text in self._texts for spelling in dict.fromkeys((json.dumps(text)[1:-1], text))
        ]

    def text(self, text: str) -> str:
        for secret in self._texts:
            text = text.replace(secret, MASK)
        return text

    def data(self, data: bytes) -> bytes:
        """A body or an event: the credentials as they are, and as JSON spells them."""
        for secret in self._bytes:
            data = data.replace(secret, MASK.encode())
        return data

    def event(self, event: Event) -> Event:
        return replace(event, raw=self.data(event.raw), wire=self.data(event.wire), data=self.data(event.data))

    def failure(self, failure: Failure) -> Failure:
        return Failure(failure.status, {self.text(name): self._value(value) for name, value in failure.error.items()})

    def headers(self, headers: Headers) -> Headers:
        return tuple((name, self.text(value)) for name, value in headers)

    def _value(self, value: object) -> object:
        """Decoded JSON."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self._value(each) for each in value]
            case dict():
                return {self.text(name): self._value(each) for name, each in value.items()}
            case _:
                return value


def _secrets(name: str, value: str) -> list[str]:
    """What of one header's value must not be shown: of an Authorization what follows its scheme."""
    if name not in CREDENTIAL_HEADERS:
        return [value] if len(value) >= SHORTEST_VALUE else []
    scheme, _, token = value.partition(" ") if name == "authorization" else (value, "", "")
    key = token.strip() or scheme
    return [key] if len(key) >= SHORTEST_KEY else []
