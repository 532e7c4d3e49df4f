"""Addresses as the file writes them: replicas, tool servers, Redis, listening addresses, hosts, origins.

Pure text rules; nothing is resolved or connected. Each parser returns the address in its one normal spelling or raises
ValueError with a sentence for the operator that does not repeat the address: it may hold a secret.
"""

import difflib
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from proxy.config.units import parse_count, parse_duration, parse_text

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_ORIGIN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<star>\*\.)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:*?#@\[\]]+)(?::(?P<port>\*|[0-9]+))?",
    re.ASCII,
)
_DEMO_SETTINGS = ("tokens", "interval", "first")


class Address(NamedTuple):
    """Where to listen. An IPv6 host is held without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a bind to `host` can only be reached from this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_replica_url(value: object) -> str:
    """`scheme://host[:port][/prefix]` without a trailing slash or `/v1`; demo:// keeps its query."""
    text = _text(value)
    parts = _split(text)
    if parts.scheme == "demo":
        return _demo_url(parts)
    if parts.scheme not in ("http", "https"):
        raise ValueError("must start with http://, https:// or demo://")
    authority = _authority(parts)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry credentials; put the key into api_key")
    if "?" in text or "#" in text:
        raise ValueError("must not have a query or a fragment")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{authority}{path}"


def parse_tool_url(value: object) -> str:
    """The address of an MCP server, as it was written; its query stays (some servers take a key there)."""
    text = _text(value)
    parts = _split(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError("must start with http:// or https://")
    _authority(parts)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry credentials; put them into headers")
    if parts.fragment:
        raise ValueError("must not have a fragment")
    return text


def parse_redis_url(value: object) -> str:
    """A Redis or Valkey address, credentials and all: keep the result secret."""
    text = _text(value)
    parts = _split(text)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError('must be "memory" or start with redis:// or rediss://')
    _authority(parts)
    if not re.fullmatch(r"/?|/[0-9]+", parts.path):
        raise ValueError("must end in a database number, such as redis://host:6379/0")
    return text


def parse_listen(value: object) -> Address:
    """`127.0.0.1:9090` or `[::1]:9090`; port 0 takes a free one."""
    host, colon, port = _text(value).rpartition(":")
    if not colon or not host:
        raise ValueError('must be host:port, such as "127.0.0.1:9090"')
    try:
        return Address(parse_bind_host(host), _port(port))
    except ValueError as exc:
        raise ValueError(f'must be host:port, such as "127.0.0.1:9090": {exc}') from None


def parse_listen_or_none(value: object) -> Address | None:
    """Like `parse_listen`; None for the empty text that an unset variable leaves, and for `none`."""
    return None if value in ("", "none") else parse_listen(value)


def parse_bind_host(value: object) -> str:
    """A name or an IP address to listen on; brackets around an IPv6 address are taken off."""
    text = _text(value)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not _is_host(bare):
        raise ValueError("the host must be a name or an IP address, without scheme and port")
    return bare


def parse_allowed_host(value: object) -> str:
    """An entry of the Host allow-list, lower case: `name`, `*.name`, either with `:port`."""
    text = _text(value).lower()
    host, colon, port = text.rpartition(":") if re.search(r":[0-9]+$", text) and not _is_host(text) else (text, "", "")
    bare = host.removeprefix("*.").removeprefix("[").removesuffix("]")
    if not _is_host(bare) or (colon and _port(port) == 0):
        raise ValueError('must be a host name, such as "gateway.example" or "*.example.com", if need be with a port')
    return text


def parse_origin(value: object) -> str:
    """An allowed origin, lower case: exact, or with a wildcard port or sub-domain."""
    match = _ORIGIN.fullmatch(_text(value))
    if match is None:
        raise ValueError(
            'must be an origin such as "https://app.example", "http://localhost:*" or "https://*.example.com"'
        )
    if not _is_host(match["host"].strip("[]")) or (match["port"] not in (None, "*") and _port(match["port"]) == 0):
        raise ValueError("names no valid host or port")
    return match[0].lower()


def parse_network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """One address (`10.0.0.7`) or a network (`10.0.0.0/8`)."""
    try:
        return ipaddress.ip_network(_text(value), strict=False)
    except ValueError:
        raise ValueError('must be an IP address or a network, such as "10.0.0.0/8"') from None


def _demo_url(parts: SplitResult) -> str:
    if parts.netloc or parts.path.strip("/") or parts.fragment:
        raise ValueError("demo:// takes no host and no path; write demo://?tokens=200&interval=20ms&first=100ms")
    members = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in members]
    for name, text in members:
        if name not in _DEMO_SETTINGS:
            near = difflib.get_close_matches(name, _DEMO_SETTINGS, 1)
            raise ValueError(f"demo:// knows tokens, interval and first{f'; did you mean {near[0]}?' if near else ''}")
        if names.count(name) > 1:
            raise ValueError(f"demo:// is given {name} twice")
        try:
            valid = 1 <= parse_count(text) <= 1_000_000 if name == "tokens" else parse_duration(text) <= 3600
        except ValueError as exc:
            raise ValueError(f"demo:// {name} {exc}" if name == "tokens" else f"demo:// {name}: {exc}") from None
        if not valid:
            raise ValueError(f"demo:// {name} must be {'1 to 1000000' if name == 'tokens' else 'at most 1h'}")
    return f"demo://?{parts.query}" if parts.query else "demo://"


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError("is not a valid URL") from None


def _authority(parts: SplitResult) -> str:
    """`host` or `host:port`, lower case; the port only where it was given."""
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a port that is not a number from 1 to 65535") from None
    if not host:
        raise ValueError("names no host")
    if not _is_host(host):
        raise ValueError("has a host that is neither a name nor an IP address")
    if port == 0:
        raise ValueError("has a port that is not a number from 1 to 65535")
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def _is_host(text: str) -> bool:
    if _NAME.fullmatch(text):
        return not re.fullmatch(r"[0-9.]+", text) or _is_ip(text)
    return _is_ip(text)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) > 65535:
        raise ValueError("the port must be a number from 0 to 65535")
    return int(text)


def _text(value: object) -> str:
    text = parse_text(value)
    if not text:
        raise ValueError("is empty")
    if " " in text or not text.isprintable():
        raise ValueError("must not contain blanks or control characters")
    return text
