"""The WebSocket handshake with a model server (RFC 6455, 4.1 and 4.2): what is asked, and what a good answer says.

Pure; what flows once it has succeeded is in `messages`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from proxy.wire.headers import Header

KEY_BYTES: Final = 16
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class UpgradeRefused(Exception):
    """The server answered with something else than 101. `headers` are as they came, `body` is whole."""

    def __init__(self, status: int, headers: tuple[Header, ...], body: bytes) -> None:
        super().__init__(f"the upgrade was refused with status {status}")
        self.status = status
        self.headers = headers
        self.body = body


class BadUpgrade(ValueError):
    """A 101 that does not follow from what was asked."""


def handshake_key(random: bytes) -> str:
    """The `Sec-WebSocket-Key` of one handshake; `random` are 16 bytes."""
    return base64.b64encode(random).decode()


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers a handshake's key."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()


def upgrade_headers(key: str, offered: Sequence[str]) -> list[Header]:
    """What makes a GET an upgrade. `offered` are subprotocols; no extension ever is."""
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    ]
    return [*headers, ("Sec-WebSocket-Protocol", ", ".join(offered))] if offered else headers


def selected_subprotocol(headers: Iterable[Header], key: str, offered: Sequence[str]) -> str | None:
    """The subprotocol that a 101 with these headers selects. Raises BadUpgrade."""
    if "websocket" not in _entries(headers, "upgrade") or "upgrade" not in _entries(headers, "connection"):
        raise BadUpgrade("it does not say that it switches to WebSocket")
    if _values(headers, "sec-websocket-accept") != [accept_key(key)]:
        raise BadUpgrade("its key does not answer ours")
    if _values(headers, "sec-websocket-extensions"):
        raise BadUpgrade("it uses an extension that was not offered")
    selected = _values(headers, "sec-websocket-protocol")
    if not selected:
        return None
    if len(selected) > 1 or selected[0] not in offered:
        raise BadUpgrade("it selects a subprotocol that was not offered")
    return selected[0]


def _values(headers: Iterable[Header], name: str) -> list[str]:
    return [value.strip() for header, value in headers if header.lower() == name]


def _entries(headers: Iterable[Header], name: str) -> set[str]:
    return {entry.strip().lower() for value in _values(headers, name) for entry in value.split(",")}
