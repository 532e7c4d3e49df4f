"""The settings of a route: where a model lives and how requests reach it.

Attribute names carry their unit, the file's keys are the aliases. What is left out of a route comes from `defaults`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxy.config.secret import ApiKey, Headers
from proxy.config.settings import OrNone, Settings
from proxy.config.values import (
    Balance,
    BalanceSetting,
    Count,
    CountOrNone,
    CountOrZero,
    Duration,
    DurationOrNone,
    ModelName,
    Name,
    OnDisconnect,
    ReplicaUrl,
    Switch,
    UrlPath,
    Wait,
    WaitOrNone,
)

Protocol = Literal["openai", "anthropic", "ollama"]


class Replica(Settings):
    """One model-server address. Short form: its URL."""

    short_form = "url"

    url: ReplicaUrl = Field(description="The server's root, such as http://gpu-1:8000; demo:// is built in.")
    weight: Count = Field(default=1, description="Its share of the requests, next to the other replicas' weights.")
    api_key: ApiKey = Field(default=None, description="The key this server asks for. It is never sent anywhere else.")
    headers: Headers = Field(default={}, description="Headers sent with every request to this server.")
    continues: Literal["prefill", "replay"] = Field(
        default="replay", description="How it takes up an answer that broke off elsewhere (on_break: continue)."
    )
    responses: Switch | None = Field(
        default=None, description="Whether it serves /v1/responses; left out, it is tried and the answer remembered."
    )

    @model_validator(mode="after")
    def _one_authorization(self) -> Self:
        if self.api_key is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("has both api_key and an Authorization header; keep one")
        return self


class Fallback(Settings):
    """Another route to try. Short form: its name."""

    short_form = "route"

    route: Name = Field(description="The name of another route.")
    reasons: tuple[Literal["context_length"], ...] = Field(
        default=(),
        alias="for",
        description="Only for these failures; left out, when every replica of the first route is out.",
    )


class Health(Settings):
    """Active probes of each replica."""

    path: UrlPath = Field(default="/health", description="What to GET.")
    every_s: Duration = Field(default=5.0, alias="every", description="Pause between probes.")
    timeout_s: Duration = Field(default=2.0, alias="timeout", description="When a probe counts as failed.")
    fall: Count = Field(default=3, description="Failures in a row that take a replica out.")
    rise: Count = Field(default=2, description="Successes in a row that bring it back.")


class Breaker(Settings):
    """Takes a replica out after failures of real requests."""

    failures: Count = Field(default=5, description="Failures that open it.")
    within_s: Duration = Field(default=30.0, alias="within", description="The time they must fall into.")
    open_for_s: Duration = Field(
        default=10.0, alias="open_for", description="How long until one request is let through."
    )


class RouteLimits(Settings):
    """What a route takes on at once."""

    streams: CountOrNone = Field(default=None, description="Requests in flight; none means no limit.")
    queue: CountOrZero = Field(default=256, description="Requests that may wait for a place.")
    queue_timeout_s: WaitOrNone = Field(default=30.0, alias="queue_timeout", description="How long one may wait.")


class RouteTimeouts(Settings):
    """How long an upstream may take."""

    connect_s: Duration = Field(default=5.0, alias="connect", description="To accept a connection.")
    first_token_s: DurationOrNone = Field(default=120.0, alias="first_token", description="To give the first token.")
    idle_s: DurationOrNone = Field(default=60.0, alias="idle", description="Between two events.")
    total_s: DurationOrNone = Field(default=None, alias="total", description="For the whole answer.")


class Retry(Settings):
    """Tries before the first content event."""

    attempts: Count = Field(default=3, description="Tries in all; 1 means no second one.")
    max_wait_s: Wait = Field(default=5.0, alias="max_wait", description="The longest Retry-After that is waited for.")


class Toolchain(Settings):
    """The gateway's tool loop."""

    max_rounds: Count = Field(default=8, description="Turns of the loop.")
    parallel: Count = Field(default=8, description="Tool calls that run at once.")


class Route(Settings):
    """A model's name and where it is served. Short form: the URL of its only replica.

    `Config.routes` holds routes with the defaults merged in and `model` filled in: there an empty `model` means that
    its variable was unset, and requests get "not configured". `model_fields_set` stays what the route's own entry says.
    """

    short_form = "replicas"

    model: ModelName = Field(default="", description="The name the upstream knows; left out, the route's name.")
    protocol: Protocol = Field(default="openai", description="What the replicas speak.")
    aliases: tuple[Name, ...] = Field(default=(), description="Other names that clients may use.")
    replicas: tuple[Replica, ...] = Field(default=(), description="The model servers.")
    balance: BalanceSetting = Field(default=Balance(), description="How a replica is chosen.")
    fallbacks: tuple[Fallback, ...] = Field(default=(), description="Routes to try when every replica is out.")
    health: Annotated[Health | None, OrNone()] = Field(
        default=Health(), description="Active probes; none turns them off."
    )
    breaker: Annotated[Breaker | None, OrNone()] = Field(
        default=Breaker(), description="Circuit breaker; none turns it off."
    )
    limits: RouteLimits = Field(default=RouteLimits(), description="What the route takes on at once.")
    timeouts: RouteTimeouts = Field(default=RouteTimeouts(), description="How long an upstream may take.")
    retry: Retry = Field(default=Retry(), description="Tries before the first content event.")
    hedge_s: DurationOrNone = Field(
        default=None, alias="hedge", description="Ask a second replica when the first has given nothing for so long."
    )
    on_break: Literal["error", "continue"] = Field(
        default="error", description="What becomes of an answer that broke off."
    )
    keepalive_s: DurationOrNone = Field(
        default=15.0, alias="keepalive", description="The silence that is broken by a sign of life."
    )
    keep_s: OnDisconnect = Field(
        default=None,
        alias="on_disconnect",
        description="When the client leaves: cancel, or go on for a while ({keep: 30s}).",
    )
    tools: tuple[Name, ...] = Field(default=(), description="Offered to the model: servers, or server.tool.")
    toolchain: Toolchain = Field(default=Toolchain(), description="The gateway's tool loop.")
    auth: Literal["replica", "passthrough"] = Field(
        default="replica", description="Whose credentials the replica sees: its own api_key, or the client's."
    )
    strict: Switch = Field(default=False, description="Answer 400 to what translation would drop.")

    @classmethod
    def expand_short_form(cls, text: str) -> dict[str, object]:
        return {"replicas": [text]}
