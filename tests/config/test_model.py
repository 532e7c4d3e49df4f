import hashlib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.config.addresses import Address
from proxy.config.model import AuthKey, Config


def config(**settings: Any) -> Config:
    return Config.model_validate(settings)


def test_server_has_the_documented_defaults() -> None:
    assert Config().server.model_dump() == {
        "host": "127.0.0.1",
        "port": 8080,
        "workers": 1,
        "allowed_hosts": (),
        "max_body_bytes": 32 << 20,
        "max_event_bytes": 16 << 20,
        "timeouts": {"headers_s": 10.0, "body_s": 30.0},
        "drain_s": 30.0,
        "gather": "off",
        "websocket": {"ping_s": 25.0, "age_s": 3600.0, "streams": 16, "detach_s": 30.0, "replay_s": 120.0},
        "trusted_proxies": (),
        "tls": None,
    }


def test_everything_else_is_off_by_default() -> None:
    bare = Config()
    assert (bare.admin.listen, bare.admin.key, bare.cors.origins, bare.state) == (None, None, None, None)
    assert (bare.auth_keys, bare.routes, bare.tools, bare.discover) == ((), {}, {}, False)


def test_file_keys_become_attributes_with_units() -> None:
    server = config(
        server={
            "max_body": "1MiB", "timeouts": {"headers": "3s", "body": "none"}, "drain": "0s", "gather": "off",
            "websocket": {"ping": "none"}, "trusted_proxies": ["10.0.0.0/8"], "port": "0",
        }
    ).server  # fmt: skip
    assert (server.max_body_bytes, server.timeouts.headers_s, server.timeouts.body_s) == (1 << 20, 3.0, None)
    assert (server.drain_s, server.gather, server.websocket.ping_s, server.port) == (0.0, "off", None, 0)
    assert server.trusted_proxies == (ip_network("10.0.0.0/8"),)


def test_admin_may_listen_on_its_own() -> None:
    admin = config(admin={"listen": "127.0.0.1:9090", "key": ""}).admin
    assert admin.listen == Address("127.0.0.1", 9090)
    assert admin.key is None


def test_word_none_for_auth_is_not_the_same_as_saying_nothing() -> None:
    assert config(auth="none").auth is None
    assert config(auth=None).auth == config().auth
    assert config(auth={"keys": None}).auth == config().auth
    assert config(auth="none").auth_keys == config().auth_keys == ()


def test_routes_have_the_defaults_and_their_names_in_them() -> None:
    routes = config(
        defaults={"timeouts": {"idle": "9s"}}, routes={"a": "demo://", "b": {"model": "", "timeouts": {"total": "1h"}}}
    ).routes
    assert list(routes) == ["a", "b"]
    assert (routes["a"].model, routes["a"].timeouts.idle_s) == ("a", 9.0)
    assert (routes["b"].model, routes["b"].timeouts.idle_s, routes["b"].timeouts.total_s) == ("", 9.0, 3600.0)


def test_key_may_be_given_in_three_ways(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    digest = hashlib.sha256(b"hunter2").hexdigest()
    for way in ({"key": "hunter2"}, {"key_sha256": digest.upper()}, {"key_file": str(tmp_path / "key")}):
        key = AuthKey.model_validate({"name": "web", **way})
        assert key.digest() == digest
        assert key.models == ("*",)


def test_key_file_must_be_there_and_hold_something(tmp_path: Path) -> None:
    key = AuthKey.model_validate({"name": "web", "key_file": str(tmp_path / "key")})
    with pytest.raises(OSError, match="No such file"):
        key.digest()
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        key.digest()


@pytest.mark.parametrize("ways", [{}, {"key": "a", "key_sha256": "a" * 64}, {"key": "a", "key_file": "f"}])
def test_key_is_given_in_exactly_one_way(ways: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        AuthKey.model_validate({"name": "web", **ways})


@pytest.mark.parametrize(
    ("mcp", "message"),
    [
        ({}, "either command or url"),
        ({"command": ["x"], "url": "http://h"}, "either command or url"),
        ({"command": ["x"], "headers": {"A": "b"}}, "has headers"),
        ({"url": "http://h", "env": {"A": "b"}}, "has env"),
        ({"command": []}, "too_short"),
        ({"command": "python -m x"}, "tuple_type"),
    ],
)
def test_tool_server_is_a_program_or_an_address(mcp: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tools={"clock": {"mcp": mcp}})


def test_no_secret_is_ever_printed() -> None:
    full = config(
        admin={"key": "hunter2"},
        auth={"keys": [{"name": "web", "key": "hunter2"}]},
        state="redis://:hunter2@host",
        routes={"a": {"replicas": [{"url": "http://a", "api_key": "hunter2", "headers": {"X": "hunter2"}}]}},
        defaults={"replicas": [{"url": "http://a", "headers": {"Authorization": "hunter2"}}]},
        tools={
            "a": {"mcp": {"url": "http://h/?k=hunter2", "headers": {"X": "hunter2"}}},
            "b": {"mcp": {"command": ["x"], "env": {"K": "hunter2"}}},
        },
    )
    for text in (
        str(full),
        repr(full),
        str(full.model_dump()),
        full.model_dump_json(),
        full.model_dump_json(by_alias=True),
    ):
        assert "hunter2" not in text
        assert "***" in text


@pytest.mark.parametrize(
    "settings",
    [
        {"server": {"port": 65536}},
        {"server": {"port": True}},
        {"server": {"workers": 0}},
        {"server": {"max_body": "lots"}},
        {"server": {"timeouts": {"headers": "none"}}},
        {"server": {"websocket": {"ping": "0s"}}},
        {"server": {"tls": {"certificate": "c"}}},
        {"server": []},
        {"cors": {"origins": ["*"]}},
        {"auth": "all"},
        {"auth": "off"},
        {"auth": {"keys": [{"name": "web", "key": ""}]}},
        {"auth": {"keys": [{"name": "web", "key": "k", "limits": {"streams": 0}}]}},
        {"state": "disk"},
        {"routes": ["echo"]},
        {"routes": {"": "demo://"}},
        {"tools": {"clock": {}}},
        {"discover": "sometimes"},
        {"route": {}},
    ],
    ids=str,
)
def test_bad_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(settings)
