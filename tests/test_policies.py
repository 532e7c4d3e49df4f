"""What a configuration says of who may do what, and that the gate, the pages and the keys agree with it."""

from __future__ import annotations

from typing import Any

from proxy.access.keys import Keyring
from proxy.access.limits import KeyRules
from proxy.config.model import Config
from proxy.policies import gate_of, key_rules, origins_of

WEB = {"name": "web", "key": "sk-web", "limits": {"requests_per_minute": 6, "streams": 2}}


def config(**sections: Any) -> Config:
    return Config.model_validate({"routes": {"m": "demo://"}, **sections})


def test_on_loopback_pages_of_this_machine_and_its_names_are_let_in() -> None:
    gate = gate_of(config(), None)
    assert gate.keys.open
    assert gate.origins.allows("http://localhost:5173")
    assert not gate.origins.allows("https://app.example.com")
    assert gate.hosts.allows("127.0.0.1:8080")
    assert not gate.hosts.allows("evil.example")


def test_elsewhere_what_the_file_lists() -> None:
    listed = config(
        server={"host": "0.0.0.0", "trusted_proxies": ["10.0.0.0/8"]},
        auth={"keys": [WEB]},
        cors={"origins": ["https://app.example.com"]},
    )
    keys = Keyring.of(listed.auth_keys)
    gate = gate_of(listed, keys)
    assert gate.keys is keys
    assert [str(network) for network in gate.trusted_proxies] == ["10.0.0.0/8"]
    assert gate.hosts.allows("any.example")
    assert origins_of(listed).allows("https://app.example.com")
    assert not origins_of(listed).allows("http://localhost:5173")


def test_each_key_has_its_limits() -> None:
    rules = key_rules(config(auth={"keys": [WEB, {"name": "free", "key": "sk-free"}]}))
    assert rules == {"web": KeyRules(requests_per_minute=6, streams=2), "free": KeyRules()}
