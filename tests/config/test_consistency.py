import hashlib
from pathlib import Path
from typing import Any

import pytest

from proxy.config.complaints import spell
from proxy.config.consistency import problems, public_without_keys
from proxy.config.model import Config


def config(**settings: Any) -> Config:
    return Config.model_validate(settings)


def places(**settings: Any) -> list[str]:
    return [spell(problem.at) for problem in problems(config(**settings))]


def test_good_configuration_has_no_problem() -> None:
    assert places(
        routes={
            "a": {"aliases": ["x", "y"], "fallbacks": ["b", {"route": "b", "for": ["context_length"]}]},
            "c": {"tools": ["t.one", "t"]},
            "b": {"aliases": ["z"], "fallbacks": ["a"]},
        },
        tools={"t": {"mcp": {"command": ["x"]}}},
        defaults={"fallbacks": ["a"], "tools": ["t"]},
    ) == []  # fmt: skip


def test_fallback_must_be_another_route() -> None:
    routes = {"a": {"fallbacks": ["b", "nowhere", "a", "alias"]}, "b": {"aliases": ["alias"]}}
    assert places(routes=routes) == [f"routes.a.fallbacks[{index}]" for index in (1, 2, 3)]


def test_what_defaults_get_wrong_is_told_once() -> None:
    routes = {"a": "demo://", "b": "demo://"}
    assert places(routes=routes, defaults={"fallbacks": ["nowhere"], "tools": ["none"], "aliases": ["x"]}) == [
        "defaults.fallbacks[0]",
        "defaults.tools[0]",
        "defaults.aliases",
    ]


def test_tool_must_be_configured() -> None:
    tools = {"clock": {"mcp": {"command": ["x"]}}}
    assert places(routes={"a": {"tools": ["clock", "clock.now", "search", "now.clock"]}}, tools=tools) == [
        "routes.a.tools[2]",
        "routes.a.tools[3]",
    ]


def test_alias_belongs_to_one_route() -> None:
    routes = {"a": {"aliases": ["b", "x", "x"]}, "b": {"aliases": ["x", "b", "y"]}}
    assert places(routes=routes) == [
        "routes.a.aliases[0]",
        "routes.a.aliases[2]",
        "routes.b.aliases[0]",
        "routes.b.aliases[1]",
    ]


def test_two_keys_differ_in_name_and_value(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("one\n")
    keys = [
        {"name": "a", "key": "one"},
        {"name": "a", "key": "two"},
        {"name": "b", "key_sha256": hashlib.sha256(b"one").hexdigest()},
        {"name": "c", "key_file": str(tmp_path / "key")},
        {"name": "d", "key_file": str(tmp_path / "absent")},
        {"name": "e", "key_file": str(tmp_path)},
    ]
    assert places(auth={"keys": keys}) == [
        "auth.keys[1].name",
        "auth.keys[2]",
        "auth.keys[3]",
        "auth.keys[4].key_file",
        "auth.keys[5].key_file",
    ]


def test_certificate_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("x")
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    assert places(server={"tls": tls}) == ["server.tls.key"]


KEYS = {"keys": [{"name": "a", "key": "one"}]}


@pytest.mark.parametrize(
    ("host", "auth", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("localhost", {}, True),
        ("::1", {}, True),
        ("0.0.0.0", {}, False),
        ("::", {}, False),
        ("gateway.example", {"keys": []}, False),
        ("0.0.0.0", KEYS, True),
        ("0.0.0.0", "none", True),
    ],
)
def test_other_machines_are_let_in_only_on_purpose(host: str, auth: object, allowed: bool) -> None:
    configured = config(auth=auth)
    assert (public_without_keys(configured, host) is None) is allowed
    assert (places(auth=auth, server={"host": host}) == []) is allowed


def test_no_message_shows_a_key() -> None:
    keys = [{"name": "a", "key": "hunter2"}, {"name": "b", "key": "hunter2"}]
    (problem,) = problems(config(auth={"keys": keys}))
    assert problem.message == 'is the same key as "a"'
