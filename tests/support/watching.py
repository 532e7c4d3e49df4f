"""Transcripts of streams, as one reads them: a line an event, `sighting | type | data`, the type empty where no
`event:` line is sent. They are played through the real parser."""

from __future__ import annotations

import json

from proxy.protocols import Sighting, StreamProtocol, Watcher
from proxy.request import RequestBody
from proxy.wire.sse import Event, Parser, encode


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
    lines = [line.strip() for line in transcript.strip().splitlines()]
    seen = []
    for line in lines:
        _, type, data = (part.strip() for part in line.split("|", 2))
        seen.append(f"{see(watcher, data, type).value} | {type} | {data}".replace("|  |", "| |"))
    assert seen == lines
