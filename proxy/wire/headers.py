"""Header hygiene: what crosses from client to upstream and back, and the headers the gateway writes itself.

Headers are `(name, value)` pairs of text as HTTP parsers give them (UTF-8 with surrogateescape), order and case kept.
Whether a credential is good, a peer trusted or an origin allowed is settled in `access`.
"""

from __future__ import annotations

import os
import re
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

Header = tuple[str, str]

CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key")
"""Where a client's own key may stand, the first one counts; `Proxy-Authorization` is for the hop before us."""

# RFC 9110, 7.6.1, with the ones that only older software names
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"})

# sec-*: the browser's handshake with us (Sec-WebSocket-*) and its words about its page and itself (Sec-Fetch-*,
# Sec-CH-*), which an upstream could only take amiss: it would see a cross-site request
_NOT_UPSTREAM_PREFIXES = ("proxy-", "sec-", "x-forwarded-", "x-penstock-")
_NOT_UPSTREAM = _HOP_BY_HOP | {
    *("host", "content-length", "accept-encoding", "expect", "x-request-id"),  # ours to write, or to answer
    *("cookie", "cookie2", "origin", "referer"),  # between a page and us
    *("forwarded", "x-real-ip"),  # hearsay; `forwarded` writes what is known
}
_NOT_UPSTREAM_NOR_CREDENTIALS = _NOT_UPSTREAM | set(CREDENTIAL_HEADERS)

_NOT_TO_CLIENT_PREFIXES = ("proxy-", "access-control-", "x-penstock-", "x-accel-")
_NOT_TO_CLIENT = _HOP_BY_HOP | {
    *("content-length", "date", "server", "x-request-id"),  # ours to write
    *("set-cookie", "set-cookie2", "location", "refresh"),  # would act in our origin's name, as do the next
    *("alt-svc", "strict-transport-security", "clear-site-data"),
    "x-sendfile",  # like x-accel-*, an order to a web server in front of us
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# W3C Trace Context, 3.2: no zero ids, version ff is invalid, and only a version after 00 may go on behind a dash
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_TRACE = frozenset({"traceparent", "tracestate"})
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TOKENS = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_REASONS = {status.value: status.phrase for status in HTTPStatus}


def towards_upstream(headers: Collection[Header], *, keep_credentials: bool = False) -> list[Header]:
    """The client's headers an upstream may see; with `keep_credentials` (a route's `auth: passthrough`) its keys too.

    The caller's duty: Host, Content-Length, `Accept-Encoding: identity`, x-request-id, `forwarded`, the credentials.
    """
    dropped = _NOT_UPSTREAM if keep_credentials else _NOT_UPSTREAM_NOR_CREDENTIALS
    if trace_id(headers) is None:
        dropped |= _TRACE
    return [header for header in _crossing(headers, dropped, _NOT_UPSTREAM_PREFIXES) if "_" not in header[0]]


def towards_client(headers: Collection[Header]) -> list[Header]:
    """The upstream's headers a client may see.

    The caller's duty: the body's framing, Date, x-request-id, x-penstock-*, CORS, and the refusal of an encoded body.
    """
    return _crossing(headers, _NOT_TO_CLIENT, _NOT_TO_CLIENT_PREFIXES)


def forwarded(headers: Collection[Header], *, peer: str, scheme: str, host: str, trusted: bool) -> list[Header]:
    """X-Forwarded-For, -Proto and -Host towards the upstream.

    `peer` is the address that is connected to us, `scheme` and `host` are what it asked for. What it says itself counts
    only if it is `trusted`: then its address goes behind the ones it names, and its scheme and host replace ours.
    """
    said = {name.lower(): value for name, value in headers} if trusted else {}
    earlier = [value for name, value in headers if trusted and value and name.lower() == "x-forwarded-for"]
    return [
        ("X-Forwarded-For", ", ".join([*earlier, peer])),
        ("X-Forwarded-Proto", said.get("x-forwarded-proto") or scheme),
        ("X-Forwarded-Host", said.get("x-forwarded-host") or host),
    ]


def client_credential(headers: Iterable[Header]) -> str | None:
    """The client's key: `Authorization: Bearer …`, else `x-api-key`, else `api-key`; None if there is none."""
    found: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in CREDENTIAL_HEADERS:
            found.setdefault(lower, value.strip())
    scheme, _, token = found.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer or found.get("x-api-key") or found.get("api-key") or None


def upstream_credentials(protocol: Literal["openai", "anthropic", "ollama"], api_key: str) -> Header:
    """The header that carries a replica's own key."""
    return ("x-api-key", api_key) if protocol == "anthropic" else ("Authorization", f"Bearer {api_key}")


def request_id(value: str | None, new: Callable[[], str]) -> str:
    """The client's own id if it is one that can stand in logs and headers, else a `new` one."""
    return value if value is not None and _REQUEST_ID.fullmatch(value) else new()


def new_request_id() -> str:
    """`req_` and 96 random bits."""
    return "req_" + os.urandom(12).hex()


def trace_id(headers: Iterable[Header]) -> str | None:
    """The trace a client's `traceparent` names; None if there is no valid one. Nothing is made up."""
    values = [value for name, value in headers if name.lower() == "traceparent"]
    match = _TRACEPARENT.fullmatch(values[0].strip()) if len(values) == 1 else None
    return match[1] if match else None


def request_head(method: str, target: str, headers: Iterable[Header]) -> bytes:
    """The request line, the header lines and the empty line. ValueError on anything that could be read as more lines.

    Bytes that are no UTF-8 (surrogates in the text) leave as they came. The caller gives Host and the framing.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    names = []
    for name, value in headers:
        names.append(name)
        lines.append(f"{name}: {value}")
    if not (_TOKENS.fullmatch(method) and _VISIBLE.fullmatch(target) and all(names)):
        raise ValueError("a method, a target or a header's name is empty or not allowed in a request")
    if names and not _TOKENS.fullmatch("".join(names)):
        raise ValueError("a header's name has a character that is not allowed")
    return _head_bytes(lines)


def answer_head(version: tuple[int, int], status: int, headers: Iterable[Header]) -> bytes:
    """The status line, the header lines and the empty line. ValueError on anything that could be read as more lines.

    The caller gives the framing and Date; names that came from an HTTP parser are tokens already.
    """
    lines = [f"HTTP/{version[0]}.{version[1]} {status} {_REASONS.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return _head_bytes(lines)


def http_date(now_wall_s: float) -> str:
    """The `Date` of this second (RFC 9110, 5.6.7). `now_wall_s`: seconds since the epoch."""
    return _date_of_second(int(now_wall_s))


@lru_cache(maxsize=1)
def _date_of_second(second: int) -> str:
    return formatdate(second, usegmt=True)


def _head_bytes(lines: list[str]) -> bytes:
    text = "".join(lines)
    if not text.isprintable() and _CONTROLS.search(text):
        raise ValueError("a header's value has a control character")
    return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape")


def _crossing(headers: Collection[Header], dropped: frozenset[str], prefixes: tuple[str, ...]) -> list[Header]:
    crossing = []
    named: set[str] = set()
    for header in headers:
        name = header[0].lower()
        if name == "connection":
            named.update(option.strip() for option in header[1].lower().split(","))
        elif name not in dropped and not name.startswith(prefixes):
            crossing.append(header)
    if named:
        return [header for header in crossing if header[0].lower() not in named]
    return crossing
