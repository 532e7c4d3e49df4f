"""The routing table: which route a model name means. An immutable snapshot; a reload builds another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

from msgspec import Struct

from proxy.access.keys import Key, Keyring
from proxy.config.model import Config
from proxy.config.route import Protocol
from proxy.config.route import Replica as ReplicaSettings
from proxy.config.route import Route as RouteSettings
from proxy.errors import Forbidden, InvalidRequest, ModelNotFound, Unauthorized, Unavailable
from proxy.routing.balancer import Balancer
from proxy.routing.failure_kind import FailureKind
from proxy.routing.limiter import Limiter, RouteRules
from proxy.routing.replica import Replica, parse_origin
from proxy.routing.retry import Fallback, RetryRules
from proxy.routing.succession import Succession
from proxy.wire.headers import upstream_credentials

NAMES_LISTED = 50
"""How many models a 404 names."""


class Timeouts(Struct, frozen=True):
    """Seconds; None for never."""

    connect_s: float | None
    first_token_s: float | None
    idle_s: float | None
    total_s: float | None


class ToolLoop(Struct, frozen=True):
    """How far the tool loop goes: turns in all, and tool calls at once."""

    max_rounds: int = 8
    parallel: int = 8


@dataclass(frozen=True, slots=True)
class Route:
    """An entry of `routes.yaml`: a model name, its replicas and policies.

    `upstream_model` is the name the replicas know; empty when it came from a variable that is not set.
    """

    name: str
    upstream_model: str
    aliases: tuple[str, ...]
    replicas: Sequence[Replica]
    balancer: Balancer
    timeouts: Timeouts
    keepalive_s: float | None
    passthrough: bool
    """The client's own credentials go to the replica."""
    protocol: Protocol = "openai"
    """What the replicas speak."""
    tools: tuple[str, ...] = ()
    """Offered to the model where the gateway runs tools: servers, or `server.tool`."""
    tool_loop: ToolLoop = field(default_factory=ToolLoop)
    retry: RetryRules = field(default_factory=RetryRules)
    fallbacks: tuple[Fallback, ...] = ()
    limiter: Limiter = field(default_factory=lambda: Limiter(RouteRules()))
    hedge_s: float | None = None
    """A second replica is asked when the first has given nothing for so long; None: never."""
    keep_s: float | None = None
    """A stream whose client has left goes on for so long; None: it ends at once, unless the client asks for more."""
    on_break: Literal["error", "continue"] = "error"
    """What becomes of an answer that breaks off after its first content."""
    table: RoutingTable = field(default_factory=lambda: RoutingTable(()), repr=False, compare=False)
    """The one it is in: where a request that has begun with it finds its fallbacks, whatever is reloaded meanwhile."""

    def require_ready(self) -> None:
        """Raise what a request for this route is answered when the file does not say enough to serve it."""
        if not self.upstream_model:
            raise InvalidRequest(f"Model {self.name} is not configured. Check environment variables.", param="model")
        if not self.replicas:
            raise Unavailable(f"No service configured for model: {self.name}")


class RoutingTable:
    """Routes by name, then by alias: an exact look-up, never a pattern. `keys` are those of the same file."""

    __slots__ = ("_by_model", "keys", "routes")

    def __init__(self, routes: Iterable[Route], keys: Keyring | None = None) -> None:
        self.keys = keys
        """None where nobody is asked for one."""
        self.routes = tuple(replace(route, table=self) for route in routes)
        self._by_model = {alias: route for route in self.routes for alias in route.aliases}
        self._by_model |= {route.name: route for route in self.routes}

    def find(self, model: str, key: Key | None) -> Route:
        """The route of `model`, for the holder of `key` (None: no keys are asked for).

        Raises `ModelNotFound`, which names the models this key may use, or `Forbidden`.
        """
        route = self._by_model.get(model)
        if route is None:
            raise ModelNotFound(f"The model does not exist here. {_listing(self.models(key))}", param="model")
        if key is not None and not (key.may_use(model) or key.may_use(route.name)):
            raise Forbidden("This key may not use the model. " + _listing(self.models(key)), param="model")
        return route

    def holder(self, key: Key | None) -> Key | None:
        """Who asks, as this table knows them. A session outlives the table whose `key` it has shown.

        Raises `Unauthorized` where that is good no longer.
        """
        if self.keys is None:
            return key
        current = None if key is None else self.keys.current(key)
        if current is None:
            raise Unauthorized("This connection's API key is not valid any more: connect again with another one.")
        return current

    def models(self, key: Key | None) -> list[str]:
        """Routes, then aliases, that `key` may use, in the file's order."""
        names = [route.name for route in self.routes]
        names += [alias for route in self.routes for alias in route.aliases]
        if key is None:
            return names
        return [n for n in names if key.may_use(n) or key.may_use(self._by_model[n].name)]


def _listing(names: list[str]) -> str:
    if not names:
        return "This gateway has no models for you: add a route to routes.yaml."
    more = f", and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return f"Available models: {', '.join(names[:NAMES_LISTED])}{more}."


def build_table(config: Config, before: RoutingTable | None = None, rng: Random | None = None) -> RoutingTable:
    """The table that a checked configuration describes. What stays of the one `before` keeps its state, from now on
    under the new file's rules: it is to be swapped at once."""
    former = {} if before is None else {route.name: route for route in before.routes}
    succession = Succession(former, rng or Random())
    keys = Keyring.of(config.auth_keys) if config.auth_keys else None  # what may fail first: nothing was changed then
    return RoutingTable((_route(name, route, succession) for name, route in config.routes.items()), keys)


def _route(name: str, settings: RouteSettings, succession: Succession) -> Route:
    timeouts = settings.timeouts
    replicas = tuple(_replica(index, replica, settings.protocol) for index, replica in enumerate(settings.replicas))
    succession.settle(name, settings, replicas)
    return Route(
        name=name,
        upstream_model=settings.model,
        aliases=settings.aliases,
        replicas=replicas,
        balancer=succession.balancer(name, settings),
        timeouts=Timeouts(timeouts.connect_s, timeouts.first_token_s, timeouts.idle_s, timeouts.total_s),
        keepalive_s=settings.keepalive_s,
        passthrough=settings.auth == "passthrough",
        protocol=settings.protocol,
        tools=settings.tools,
        tool_loop=ToolLoop(settings.toolchain.max_rounds, settings.toolchain.parallel),
        retry=RetryRules(settings.retry.attempts, settings.retry.max_wait_s),
        fallbacks=tuple(Fallback(other.route, tuple(map(FailureKind, other.reasons))) for other in settings.fallbacks),
        limiter=succession.limiter(name, settings),
        hedge_s=settings.hedge_s,
        keep_s=settings.keep_s,
        on_break=settings.on_break,
    )


def _replica(index: int, settings: ReplicaSettings, protocol: Protocol) -> Replica:
    origin, prefix = parse_origin(settings.url)
    headers = [(name, value.get_secret_value()) for name, value in settings.headers.items()]
    if settings.api_key is not None:
        headers.append(upstream_credentials(protocol, settings.api_key.get_secret_value()))
    return Replica(index, origin, prefix, tuple(headers), weight=settings.weight, continues=settings.continues)
