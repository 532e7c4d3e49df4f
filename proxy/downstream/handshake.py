"""The WebSocket handshake: which of the offered subprotocols is selected, which of them are credentials, and whose a
credential is that comes only when the socket is open.

A browser cannot set headers on a WebSocket, so a key may come as a subprotocol; it is never selected, echoed or logged.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

from proxy.access.keys import Key
from proxy.downstream.gate import raw_headers
from proxy.errors import Forbidden, InvalidRequest, Unauthorized
from proxy.relay import Relay
from proxy.wire.headers import client_credential

MUX = "llm-mux.v1"
_PLAIN_KEY = "openai-insecure-api-key."
_ENCODED_KEY = "bearer.b64url."
_OFFER = "Sec-WebSocket-Protocol"
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


def without_credentials(request: web.Request, offer: Offer) -> web.Request:
    """The request with nothing but the selected subprotocol in its offer: aiohttp logs the list when none matches."""
    said = request.headers.items()
    headers = CIMultiDict((name, value) for name, value in said if value.isascii())  # it cannot copy others
    headers.popall(_OFFER, None)
    if offer.selected is not None:
        headers[_OFFER] = offer.selected
    return request.clone(headers=headers)


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
