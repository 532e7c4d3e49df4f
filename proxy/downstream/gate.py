"""The gate: what every request passes before anything is done for it, and who may use the API.

Hosts and origins are checked against DNS rebinding and foreign pages, credentials against the keys. The policies
themselves are `access`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from aiohttp import web

from proxy.access.keys import Key, Keyring
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.downstream.client_socket import ClientSocket
from proxy.errors import Forbidden, Unauthorized, Unavailable
from proxy.request import Heads
from proxy.wire.headers import Header, client_credential, forwarded

_LENGTH = (b"Content-Length", b"content-length")


@dataclass(slots=True, eq=False)
class Gate:
    """Who may come in: names we are asked for, pages that may ask, keys, and proxies whose word counts."""

    hosts: HostPolicy
    origins: OriginPolicy
    keys: Keyring
    trusted_proxies: Sequence[IPv4Network | IPv6Network] = ()
    rules: object = field(default_factory=object, init=False, repr=False)
    """Another one after each change: who was let in under others is looked at again."""

    def change(self, origins: OriginPolicy, keys: Keyring) -> None:
        """A reload's: they count for every request from now on."""
        self.origins, self.keys, self.rules = origins, keys, object()

    def check_host(self, request: web.Request) -> None:
        """Raise `Forbidden` for a name that is not ours: the `Host` header's and, in absolute form, the target's."""
        absolute = not request.raw_path.startswith(("/", "*"))
        if not self.hosts.allows(request.headers.get("Host")) or (absolute and not self.hosts.allows(request.host)):
            raise Forbidden(
                "This gateway is not known by that host name; add it to server.allowed_hosts.", code="host_not_allowed"
            )

    def check_room(self, request: web.Request) -> None:
        """Raise `Unavailable` on a connection that is one too many."""
        connection = request.protocol
        if isinstance(connection, ClientSocket) and connection.is_one_too_many:
            raise Unavailable("Too many clients are connected: come back later.", code="overloaded", retry_after_s=1)

    def let_in(self, request: web.Request) -> Visitor:
        """Who asks. Raises `Unauthorized` or `Forbidden`.

        The next request on the same connection mostly has the same head: then it is the same visitor.
        """
        connection = request.protocol
        assert isinstance(connection, ClientSocket)
        raw = request.raw_headers
        last = connection.visitor
        rules = self.rules
        if isinstance(last, Visitor) and last.rules is rules and last.raw is raw:
            return last
        said = [header for header in raw if header[0] not in _LENGTH]
        if isinstance(last, Visitor) and last.rules is rules and last.said == said:
            return last
        key = self.admit(request)
        headers = tuple(header for header in raw_headers(request) if header[0].lower() != "content-length")
        visitor = Visitor(rules, raw, said, key, headers, tuple(self.forwarded(request)))
        connection.remember(request, visitor)
        return visitor

    def admit(self, request: web.Request, credential: str | None = None) -> Key | None:
        """The key that the request carries (None where none is asked for). Raises `Unauthorized` or `Forbidden`.

        `credential` is one that came another way than by a header.
        """
        if not self.keys.open:
            key = self.keys.find(credential or client_credential(raw_headers(request)))
            if key is None:
                raise Unauthorized("Give a valid API key: Authorization: Bearer <key>, or x-api-key: <key>.")
            return key
        self.check_origin(request)
        return None

    def check_origin(self, request: web.Request) -> None:
        """Raise `Forbidden` for a page of an origin that is not listed and not our own."""
        origin = request.headers.get("Origin")
        if not self.origins.allows_request(origin, request.headers.get("Host", ""), request.scheme):
            raise Forbidden(
                "Pages of this origin may not use the gateway; add it to cors.origins.", code="origin_not_allowed"
            )

    def forwarded(self, request: web.Request) -> list[tuple[str, str]]:
        """The `X-Forwarded-*` headers the upstream gets."""
        peer = request.remote or ""
        return forwarded(
            raw_headers(request),
            peer=peer,
            scheme=request.scheme,
            host=request.headers.get("Host", ""),
            trusted=self._trusts(peer),
        )

    def _trusts(self, peer: str) -> bool:
        if not self.trusted_proxies or not peer:
            return False
        address = ip_address(peer)
        return any(address in network for network in self.trusted_proxies)


@dataclass(frozen=True, slots=True)
class Visitor:
    """What a request's head and its connection tell, its body's length aside.

    `rules` are those of the gate that let it in. `headers` are the client's as sent, `said` the same in bytes, `raw`
    too, with the length of the body it came with; `forwarded` is what the upstream gets to know of it.
    """

    rules: object = field(repr=False)
    raw: Sequence[tuple[bytes, bytes]] = field(repr=False)
    said: Sequence[tuple[bytes, bytes]] = field(repr=False)
    key: Key | None
    headers: Sequence[Header] = field(repr=False)
    forwarded: Sequence[Header]
    crossing: Heads = field(default_factory=dict, repr=False)


def raw_headers(request: web.Request) -> list[tuple[str, str]]:
    """The request's headers as sent: names and values as text, in order, repeated ones repeated."""
    return list(request.headers.items())
