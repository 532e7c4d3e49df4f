"""The WebSocket handshake: whether it is one, which of the offered subprotocols is selected, which of them are
credentials, and whose a credential is that comes only when the socket is open.

A browser cannot set headers on a WebSocket, so a key may come as a subprotocol; it is never selected, echoed or logged.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from aiohttp import HttpVersion11, web

from proxy.access.keys import Key
from proxy.downstream.gate import raw_headers
from proxy.errors import Forbidden, InvalidRequest, Unauthorized
from proxy.relay import Relay
from proxy.wire.headers import Header, client_credential
from proxy.wire.upgrade import KEY_BYTES, accept_key

MUX = "llm-mux.v1"
_PLAIN_KEY = "openai-insecure-api-key."
_ENCODED_KEY = "bearer.b64url."
_OFFER = "Sec-WebSocket-Protocol"
_HANDSHAKE = re.compile(r"sec-websocket-.*|upgrade|host", re.IGNORECASE)
_VERSIONS = frozenset({"13", "8", "7"})
"""The last one is the standard, and those before it differ only in what they call themselves."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Offer:
    """What the client offered: the subprotocol to select (None: none was offered), a key, if one came this way, and
    all that are no key."""

    selected: str | None
    credential: str | None = field(repr=False)
    others: tuple[str, ...] = ()

    @property
    def is_mux(self) -> bool:
        return self.selected == MUX


class Door:
    """Who may speak on a socket that is open already, by the routes' keys as they are now."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def let_in(self, bearer: str | None) -> Key:
        """The key that this credential is. Raises `Unauthorized`; `Forbidden` where it is good for nothing here."""
        table = self._relay.table
        key = table.keys.find(bearer) if table.keys is not None else None
        if key is None:
            raise Unauthorized('Give a valid API key: {"type":"init","v":1,"auth":{"bearer":"<key>"}}.')
        if not table.models(key):
            raise Forbidden("This key may use none of the models here.")
        return key

    def check(self, key: Key | None) -> None:
        """Raises `Unauthorized` where the key that a session was let in with is good no longer."""
        self._relay.table.holder(key)


def read_offer(request: web.Request) -> Offer:
    """Sort the offered subprotocols; a dialect's goes before any other. Raises `InvalidRequest`."""
    entries = [entry.strip() for value in request.headers.getall(_OFFER, []) for entry in value.split(",")]
    credential: str | None = None
    others: list[str] = []
    for entry in filter(None, entries):
        if _TOKEN.fullmatch(entry) is None:
            raise InvalidRequest("An offered subprotocol is not valid.")
        key = _key(entry)
        if key is None:
            others.append(entry)
        elif credential is None:
            credential = key
    selected = MUX if MUX in others else others[0] if others else None
    return Offer(selected, client_credential(raw_headers(request)) or credential, tuple(others))


def check_handshake(request: web.Request) -> None:
    """Whether it asks for WebSocket as it has to (RFC 6455, 4.2.1). Raises `InvalidRequest`."""
    said = request.headers
    if (
        not request._message.upgrade  # by `Connection`: what follows is no request to aiohttp's parser
        or request.version < HttpVersion11
        or said.get("Sec-WebSocket-Version", "") not in _VERSIONS
        or not _is_key(said.get("Sec-WebSocket-Key", ""))
    ):
        raise InvalidRequest("The upgrade is no valid WebSocket handshake.")


def switching(request: web.Request, subprotocol: str | None) -> list[Header]:
    """What a 101 says to this handshake."""
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "upgrade"),
        ("Sec-WebSocket-Accept", accept_key(request.headers["Sec-WebSocket-Key"])),
    ]
    return headers if subprotocol is None else [*headers, (_OFFER, subprotocol)]


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_BYTES
    except ValueError:
        return False


def lasting_headers(request: web.Request) -> list[Header]:
    """What an upgrade says of its session's requests: all but the handshake itself, which may have a key in it."""
    return [header for header in raw_headers(request) if _HANDSHAKE.fullmatch(header[0]) is None]


def _key(entry: str) -> str | None:
    if entry.startswith(_PLAIN_KEY):
        return entry.removeprefix(_PLAIN_KEY)
    if not entry.startswith(_ENCODED_KEY):
        return None
    encoded = entry.removeprefix(_ENCODED_KEY)
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidRequest("The key in the offered subprotocols is not base64url.") from None
