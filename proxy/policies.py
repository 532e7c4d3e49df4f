"""What a configuration says of who may do what, as the objects that decide it: at the start and after each reload."""

from __future__ import annotations

from proxy.access.keys import Keyring
from proxy.access.limits import KeyRules
from proxy.access.origins import HostPolicy, OriginPolicy
from proxy.config.addresses import is_loopback
from proxy.config.model import Config
from proxy.downstream.gate import Gate


def gate_of(config: Config, keys: Keyring | None) -> Gate:
    """The main port's; `keys` are the clients' (None: nobody is asked for one)."""
    server = config.server
    return Gate(
        hosts=HostPolicy(server.allowed_hosts, loopback_bind=is_loopback(server.host)),
        origins=origins_of(config),
        keys=keys or Keyring(),
        trusted_proxies=server.trusted_proxies,
    )


def origins_of(config: Config) -> OriginPolicy:
    """Which pages may use the main port."""
    return OriginPolicy(config.cors.origins, loopback_bind=is_loopback(config.server.host))


def key_rules(config: Config) -> dict[str, KeyRules]:
    """What each key may use, by its name."""
    limits = {key.name: key.limits for key in config.auth_keys}
    return {name: KeyRules(its.requests_per_minute, its.tokens_per_minute, its.streams) for name, its in limits.items()}
