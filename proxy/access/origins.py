"""Which pages and which names may reach the gateway: the `Origin` a browser sends, and the `Host` that was asked for.

One `OriginPolicy` decides for everything browsers do: CORS, WebSocket upgrades, requests without a key. `HostPolicy`
keeps a page from reaching a loopback gateway under a name of its own (DNS rebinding). Answering 403 is the callers'.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LOOPBACK_ORIGINS: Final = tuple(
    f"{scheme}://{host}:*"
    for scheme in ("http", "https")
    for host in ("localhost", "*.localhost", "127.0.0.1", "[::1]")
)

_ANY_PORT: Final = -1
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NO_PORT: Final = 0  # a scheme of which we know no port of its own: tauri://localhost
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE | re.ASCII)
_AUTHORITY: Final = re.compile(
    r"(\[[0-9a-f:.]+\]|[a-z0-9_~-]+(?:\.[a-z0-9_~-]+)*)\.?(?::([0-9]{0,5}))?", re.IGNORECASE | re.ASCII
)
_IPV4_LOOPBACK: Final = re.compile(r"127(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}")
_BELOW: Final = "*."
_REMEMBERED: Final = 64
"""Decisions a policy keeps: clients ask under few names, and a header may be 16 KiB long."""


class OriginPolicy:
    """Which pages may use the gateway.

    `patterns` are origins: exact (`https://app.example.com`), with any port (`http://localhost:*`), or with any name
    below one (`https://*.example.com`, not that name itself). None (`cors.origins` left out) means every loopback
    origin on a loopback bind and none elsewhere. Raises `ValueError` for a pattern that is none of these.
    """

    __slots__ = ("_exact", "_listed", "_permitted", "_suffixes", "patterns")

    def __init__(self, patterns: Sequence[str] | None, *, loopback_bind: bool) -> None:
        if patterns is None:
            patterns = LOOPBACK_ORIGINS if loopback_bind else ()
        self.patterns = tuple(patterns)
        parsed = [_origin_pattern(pattern) for pattern in self.patterns]
        self._exact = frozenset(origin for origin, below in parsed if not below)
        self._suffixes = frozenset(origin for origin, below in parsed if below)
        self._listed = lru_cache(_REMEMBERED)(self._is_listed)
        self._permitted = lru_cache(_REMEMBERED)(self._is_permitted)

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin is listed. `null` (sandboxed pages, files) and what is malformed never is."""
        return self._listed(origin)

    def allows_request(self, origin: str | None, host: str, scheme: str) -> bool:
        """Whether a request may come from where it says: no `Origin` (no page), a listed one, or our own page.

        `host` is the Host header, `scheme` how the request reached us. Our own page may say `https` where we see
        `http`: something in front of us ends its TLS. The other way round it is somebody else's page.
        """
        return origin is None or self._permitted(origin, host, scheme)

    def _is_listed(self, origin: str) -> bool:
        page = _parse_origin(origin)
        return page is not None and self._lists(page)

    def _is_permitted(self, origin: str, host: str, scheme: str) -> bool:
        page = _parse_origin(origin)
        return page is not None and (self._lists(page) or _is_ours(page, host, scheme))

    def _lists(self, page: tuple[str, str, int]) -> bool:
        scheme, host, port = page
        if page in self._exact or (scheme, host, _ANY_PORT) in self._exact:
            return True
        return bool(self._suffixes) and any(
            (scheme, name, port) in self._suffixes or (scheme, name, _ANY_PORT) in self._suffixes
            for name in _names_above(host)
        )


class HostPolicy:
    """Which names the gateway may be asked for.

    `allowed_hosts` are names, with a port or for any, or every name below one (`*.example.com`). On a loopback bind the
    loopback names are allowed too, and nothing else; elsewhere an empty list allows everything. Raises `ValueError` for
    an entry that is no host.
    """

    __slots__ = ("_everything", "_exact", "_known", "_loopback", "_suffixes")

    def __init__(self, allowed_hosts: Iterable[str], *, loopback_bind: bool) -> None:
        parsed = [_host_pattern(entry) for entry in allowed_hosts]
        self._exact = frozenset(host for host, below in parsed if not below)
        self._suffixes = frozenset(host for host, below in parsed if below)
        self._loopback = loopback_bind
        self._everything = not loopback_bind and not parsed
        self._known = lru_cache(_REMEMBERED)(self._is_known)

    def allows(self, host_header: str | None) -> bool:
        """Whether a request for this name is for us. None (no Host header) passes: every browser sends one.

        The target of an absolute-form request line names a host too: ask for that one as well; an IPv6 address may
        stand without brackets, as aiohttp gives it then.
        """
        return self._everything or host_header is None or self._known(host_header)

    def _is_known(self, host_header: str) -> bool:
        asked = _parse_host(host_header)
        if asked is None:
            return False
        host, port = asked
        return (self._loopback and _is_loopback_name(host)) or self._lists(host, port)

    def _lists(self, host: str, port: int | None) -> bool:
        ports = (_ANY_PORT, *_DEFAULT_PORTS.values()) if port is None else (_ANY_PORT, port)
        if any((host, listed) in self._exact for listed in ports):
            return True
        return bool(self._suffixes) and any(
            (name, listed) in self._suffixes for name in _names_above(host) for listed in ports
        )


def _parse_authority(text: str) -> tuple[str, int | None] | None:
    """Host (lower case, no dot at its end, IPv6 shortened and in brackets) and port; None for what is no host."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    host, digits = match.groups()
    port = int(digits) if digits else None
    host = _shortened(host) if host[0] == "[" else host.lower()
    return (host, port) if host and (port is None or port <= 65535) else None


def _parse_host(text: str) -> tuple[str, int | None] | None:
    """The same, for an IPv6 address without its brackets too."""
    return _parse_authority(text) or _parse_authority(f"[{text}]")


def _parse_origin(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port, the scheme's own port filled in; None for `null` and what is malformed."""
    match = _SCHEME.match(origin)
    authority = _parse_authority(origin[match.end() :]) if match else None
    if match is None or authority is None:
        return None
    scheme, (host, port) = match[1].lower(), authority
    return scheme, host, _DEFAULT_PORTS.get(scheme, _NO_PORT) if port is None else port


def _is_ours(page: tuple[str, str, int], host_header: str, scheme: str) -> bool:
    """Whether the page comes from the host and port the request asks for."""
    page_scheme, page_host, page_port = page
    asked = _parse_authority(host_header)
    if asked is None or page_scheme not in (scheme, "https"):
        return False
    host, port = asked
    return page_host == host and page_port == (_DEFAULT_PORTS.get(page_scheme, _NO_PORT) if port is None else port)


def _origin_pattern(pattern: str) -> tuple[tuple[str, str, int], bool]:
    """The origin a pattern names, its port `_ANY_PORT` for `:*`, and whether the names below its host are meant."""
    scheme, separator, rest = pattern.partition("://")
    page = _parse_origin(scheme + separator + rest.removeprefix(_BELOW).removesuffix(":*"))
    if page is None:
        raise ValueError(
            f'"{pattern}" is not an origin: write https://app.example.com, http://localhost:* or https://*.example.com'
        )
    return (page[0], page[1], _ANY_PORT if rest.endswith(":*") else page[2]), rest.startswith(_BELOW)


def _host_pattern(entry: str) -> tuple[tuple[str, int], bool]:
    """The host and port an entry names (`_ANY_PORT` for none), and whether the names below that host are meant."""
    authority = _parse_host(entry.removeprefix(_BELOW))
    if authority is None:
        raise ValueError(f'"{entry}" is not a host: write gateway.example.com, gateway.example.com:8443, *.example.com')
    host, port = authority
    return (host, _ANY_PORT if port is None else port), entry.startswith(_BELOW)


def _names_above(host: str) -> Iterator[str]:
    """`example.com` and `com` for `app.example.com`."""
    while host := host.partition(".")[2]:
        yield host


def _is_loopback_name(host: str) -> bool:
    """Names that a browser resolves to its own machine, whatever a DNS server says."""
    return host in ("localhost", "[::1]") or host.endswith(".localhost") or bool(_IPV4_LOOPBACK.fullmatch(host))


def _shortened(bracketed: str) -> str:
    """`[0:0:0:0:0:0:0:1]` as `[::1]`; empty for what is no IPv6 address."""
    if bracketed == "[::1]":
        return bracketed
    try:
        return f"[{IPv6Address(bracketed[1:-1]).compressed}]"
    except AddressValueError:
        return ""
