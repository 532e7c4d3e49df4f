"""A replica: one model-server address of a route, as the file describes it.

What is known of it right now is its `standing`; who connects to it, `upstream/pool`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from proxy.routing.standing import Standing

Headers = tuple[tuple[str, str], ...]

DEFAULT_PORTS = {"http": 80, "https": 443, "demo": 0}


class Origin(Struct, frozen=True):
    """Where a connection goes, and what connections may be shared: scheme, host, port (and a demo's settings)."""

    scheme: Literal["http", "https", "demo"]
    host: str
    port: int
    query: str = ""

    @property
    def authority(self) -> str:
        """The value of the `Host` header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(slots=True, eq=False)
class Replica:
    """One address. `index` is its place in the route: the only name of it that clients see."""

    index: int
    origin: Origin
    prefix: str
    headers: Headers = field(default=(), repr=False)
    """Sent with every request to it and never anywhere else: its credentials among them."""
    takes_stream_options: bool = True
    """False once it refused them and answered without: it is not asked for token counts any more."""
    weight: int = 1
    continues: Literal["prefill", "replay"] = "replay"
    """How it takes up an answer that broke off elsewhere."""
    standing: Standing = field(default_factory=Standing, repr=False)
    """What is known of it right now; a reload keeps it."""

    @property
    def in_flight(self) -> int:
        return self.standing.in_flight

    @in_flight.setter
    def in_flight(self, count: int) -> None:
        self.standing.in_flight = count

    def target(self, path: str, query: str) -> str:
        """The request target of `path` at this replica, e.g. `/api/v1/chat/completions?beta=true`."""
        return f"{self.prefix}{path}?{query}" if query else self.prefix + path


def parse_origin(url: str) -> tuple[Origin, str]:
    """The origin of a validated replica URL, and its path prefix (`""` for the root; a trailing `/v1` is the root)."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme == "demo":
        return Origin("demo", parts.hostname or "demo", 0, parts.query), ""
    if scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a replica's url is http://host:port, https://host or demo://")
    prefix = parts.path.rstrip("/")
    prefix = prefix.removesuffix("/v1").rstrip("/")
    narrowed: Literal["http", "https"] = "https" if scheme == "https" else "http"
    return Origin(narrowed, parts.hostname, parts.port or DEFAULT_PORTS[scheme]), prefix
