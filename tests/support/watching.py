"""Transcripts of streams, as one reads them: a line an event, `sighting | type | data`, the type empty where no
`event:` line is sent; a line further in goes on with the data. They are played through the real parser."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING

from proxy.request import RequestBody
from proxy.wire.sse import Event, Parser, encode

if TYPE_CHECKING:
    from proxy.protocols import Sighting, StreamProtocol, Watcher


def watch(protocol: StreamProtocol, **members: object) -> Watcher:
    """A watcher for a request with these members."""
    return protocol.watcher(RequestBody.parse(json.dumps({"model": "chat", "stream": True, **members}).encode()))


def event(data: bytes, type: bytes = b"") -> Event:
    """One event as the parser gives it."""
    [parsed] = Parser(2**24).feed(encode(data, type))
    return parsed


def see(watcher: Watcher, data: bytes | str, type: str = "") -> Sighting:
    """What the watcher says of one event."""
    return watcher.observe(event(data.encode() if isinstance(data, str) else data, type.encode()))


def play(watcher: Watcher, transcript: str) -> None:
    """Play a transcript; what is seen must be what it says, line by line."""
    lines = [[part.strip() for part in line.split("|", 2)] for line in _whole_lines(transcript)]
    assert [[see(watcher, data, type).value, type, data] for _, type, data in lines] == lines


def _whole_lines(transcript: str) -> list[str]:
    lines: list[str] = []
    for line in inspect.cleandoc(transcript).splitlines():
        if line.startswith(" "):
            lines[-1] += line.strip()
        else:
            lines.append(line)
    return lines
