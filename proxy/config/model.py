"""The configuration as the program sees it: frozen, checked, in plain numbers.

Attribute names carry their unit, the file's keys are the aliases. A route's settings are in `route`; reading the file
is `loader`'s work; what settings must not say about each other is in `consistency`.
"""

import hashlib
from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from proxy.config.inheritance import effective
from proxy.config.route import Replica, Route
from proxy.config.secret import ApiKey, ClientKey, Digest, Headers, State, ToolUrl, VariableValue
from proxy.config.settings import OrNone, Settings
from proxy.config.values import (
    AllowedHost,
    BindHost,
    Count,
    CountOrNone,
    Duration,
    DurationOrNone,
    File,
    Gather,
    Listen,
    Name,
    Network,
    Origin,
    Port,
    Size,
    Switch,
    Wait,
    WaitOrNone,
)

__all__ = ["Admin", "Auth", "AuthKey", "Config", "Cors", "Mcp", "Replica", "Route", "Server", "Tls", "Tool"]

MIB = 1 << 20


class ServerTimeouts(Settings):
    """How long a client may take."""

    headers_s: Duration = Field(default=10.0, alias="headers", description="To send a request's head.")
    body_s: DurationOrNone = Field(default=30.0, alias="body", description="Between two pieces of its body.")


class WebSocket(Settings):
    """WebSocket sessions."""

    ping_s: DurationOrNone = Field(default=25.0, alias="ping", description="Pause between protocol pings.")
    age_s: DurationOrNone = Field(
        default=3600.0, alias="age", description="After so long a session is asked to reconnect."
    )
    streams: Count = Field(default=16, description="Live streams of one session.")
    detach_s: Wait = Field(
        default=30.0, alias="detach", description="How long a resumable stream waits for its client."
    )
    replay_s: Wait = Field(default=120.0, alias="replay", description="How long a finished stream can still be read.")


class Tls(Settings):
    """PEM files; relative paths count from this file's folder."""

    certificate: File = Field(description="The certificate chain.")
    key: File = Field(description="Its private key, without a passphrase.")


class Server(Settings):
    """The listening side. Changes need a restart."""

    host: BindHost = Field(
        default="127.0.0.1", description="Where to listen; off loopback, auth.keys or auth: none is needed."
    )
    port: Port = Field(default=8080, description="0 takes a free port.")
    workers: Count = Field(default=1, description="Processes sharing the port.")
    allowed_hosts: tuple[AllowedHost, ...] = Field(
        default=(), description="Host header allow-list; on a loopback bind the loopback names are always in it."
    )
    max_body_bytes: Size = Field(default=32 * MIB, alias="max_body", description="The largest request body.")
    max_event_bytes: Size = Field(default=16 * MIB, alias="max_event", description="The largest event of an upstream.")
    timeouts: ServerTimeouts = Field(default=ServerTimeouts(), description="How long a client may take.")
    drain_s: WaitOrNone = Field(default=30.0, alias="drain", description="How long a stop waits for open streams.")
    gather: Gather = Field(
        default="off", description="off, auto or a duration: let a busy loop collect more sockets a turn."
    )
    websocket: WebSocket = Field(default=WebSocket(), description="WebSocket sessions.")
    trusted_proxies: tuple[Network, ...] = Field(default=(), description="Addresses whose X-Forwarded-* headers count.")
    tls: Tls | None = Field(default=None, description="Serve HTTPS with these files.")


class Admin(Settings):
    """Health, metrics and /admin."""

    listen: Listen = Field(default=None, description="host:port of their own, off the main port.")
    key: ApiKey = Field(
        default=None, description="What /metrics and /admin ask for, unless they stand on a loopback port."
    )


class Cors(Settings):
    """Pages of other origins."""

    origins: tuple[Origin, ...] | None = Field(
        default=None,
        description="Exact origins, or with a wildcard port or sub-domain. Left out: on a loopback bind the loopback "
        "names with any port, elsewhere none.",
    )


class KeyLimits(Settings):
    """What one key may use; left out, as much as it likes."""

    requests_per_minute: CountOrNone = Field(default=None, description="Requests a minute.")
    tokens_per_minute: CountOrNone = Field(default=None, description="Tokens a minute, input and output.")
    streams: CountOrNone = Field(default=None, description="Streams at once.")


class AuthKey(Settings):
    """One client's key, given in one of three ways."""

    name: Name = Field(description="What logs and metrics call it.")
    key: ClientKey | None = Field(default=None, description="The key itself, best from a variable.")
    key_sha256: Digest | None = Field(default=None, description="Its SHA-256, in hexadecimal digits.")
    key_file: File | None = Field(default=None, description="A file that holds it.")
    models: tuple[Name, ...] = Field(default=("*",), description="Models it may use; * stands for anything.")
    limits: KeyLimits = Field(default=KeyLimits(), description="What it may use.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.key, self.key_sha256, self.key_file)) != 1:
            raise ValueError("needs exactly one of key, key_sha256 and key_file")
        return self

    def digest(self) -> str:
        """The key's SHA-256 in lower-case hexadecimal digits.

        Reads `key_file` each time, without the line break at its end: raises OSError when it cannot be read, and
        ValueError when there is no key in it.
        """
        if self.key_sha256 is not None:
            return self.key_sha256
        key = self.key_file.read_bytes().strip() if self.key_file else b""
        if self.key is not None:
            key = self.key.get_secret_value().encode()
        if not key:
            raise ValueError("is empty")
        return hashlib.sha256(key).hexdigest()


class Auth(Settings):
    """Who may use the gateway."""

    keys: tuple[AuthKey, ...] = Field(default=(), description="Clients' keys. Without any, nobody is asked for one.")


class Mcp(Settings):
    """A tool server of the Model Context Protocol: a program, or an address."""

    command: tuple[str, ...] | None = Field(default=None, min_length=1, description="The program and its arguments.")
    env: dict[str, VariableValue] = Field(default={}, description="Variables added to the program's environment.")
    url: ToolUrl | None = Field(default=None, description="The server's address.")
    headers: Headers = Field(default={}, description="Headers sent to it.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("needs either command or url")
        if self.headers and self.url is None:
            raise ValueError("has headers, but no url")
        if self.env and self.command is None:
            raise ValueError("has env, but no command")
        return self


class Tool(Settings):
    """A tool server that routes may name."""

    mcp: Mcp = Field(description="How to reach it.")
    timeout_s: Duration = Field(default=30.0, alias="timeout", description="How long one call may take.")


class Config(Settings):
    """The gateway's configuration.

    `auth` is None when the file says `auth: none` out loud; `state` is None for memory. `routes` have the defaults in
    them.
    """

    server: Server = Field(default=Server(), description="The listening side.")
    admin: Admin = Field(default=Admin(), description="Health, metrics and /admin.")
    cors: Cors = Field(default=Cors(), description="Pages of other origins.")
    auth: Annotated[Auth | None, OrNone()] = Field(default=Auth(), description="Clients' keys, or none.")
    state: State = Field(
        default=None, description="memory, or redis://host:6379/0: shared limits and resumable streams."
    )
    defaults: Route = Field(default=Route(), description="Settings for all routes, below each one's own.")
    routes: dict[Name, Route] = Field(default={}, description="Model name to replicas and policies.")
    tools: dict[Name, Tool] = Field(default={}, description="Tool servers that routes may name.")
    discover: Switch = Field(default=False, description="Look for model servers on their usual loopback ports.")

    @field_validator("routes", mode="after")
    @classmethod
    def _inherit(cls, routes: dict[str, Route], info: ValidationInfo) -> dict[str, Route]:
        defaults = info.data.get("defaults", Route())
        return {name: effective(name, route, defaults) for name, route in routes.items()}

    @property
    def auth_keys(self) -> tuple[AuthKey, ...]:
        return self.auth.keys if self.auth else ()
