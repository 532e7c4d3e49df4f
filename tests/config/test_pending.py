from typing import Any

import pytest

from proxy.config.loader import load, shipped
from proxy.config.model import Config
from proxy.config.pending import pending


def places(**settings: Any) -> tuple[str, ...]:
    return pending(Config.model_validate(settings))


def test_shipped_file_waits_for_nothing() -> None:
    assert pending(load(shipped(), {})) == ()


def test_what_works_today_is_not_mentioned() -> None:
    assert places(
        server={
            "host": "localhost", "port": 1, "workers": 2, "allowed_hosts": ["a"], "max_body": 5, "max_event": 5,
            "drain": "1s",
            "timeouts": {"headers": "1s"},
            "websocket": {"ping": "1s", "age": "1s", "streams": 1, "detach": "1s", "replay": "1s"},
            "trusted_proxies": ["::1"],
            "tls": {"certificate": "a", "key": "b"},
        },
        admin={"listen": "127.0.0.1:1", "key": "k"},
        cors={"origins": []},
        auth={"keys": [{"name": "a", "key": "k", "models": ["m"], "limits": {"streams": 1}}]},
        routes={
            "a": {
                "model": "m", "protocol": "openai", "aliases": ["x"], "timeouts": {"idle": "1s"}, "keepalive": "1s",
                "auth": "passthrough", "balance": {"sticky": "user"}, "fallbacks": ["b"], "health": {"every": "1s"},
                "breaker": {"failures": 1}, "limits": {"streams": 1}, "retry": {"attempts": 2},
                "hedge": "1s", "on_break": "continue", "on_disconnect": {"keep": "1s"},
                "replicas": [
                    {"url": "demo://", "weight": 2, "continues": "prefill", "api_key": "k", "headers": {"X": "y"}},
                ],
            },
            "b": "demo://",
        },
    ) == ()  # fmt: skip


def test_settings_that_ask_for_nothing_are_not_mentioned() -> None:
    nothing = {
        "fallbacks": [], "health": "none", "breaker": "none", "retry": {"attempts": 1}, "hedge": "none", "tools": [],
        "on_break": "error", "on_disconnect": "cancel", "strict": False, "replicas": [{"url": "demo://", "weight": 1}],
    }  # fmt: skip
    assert places(
        server={"gather": "off"},
        auth={"keys": [{"name": "a", "key": "k", "limits": {"streams": "none"}}]},
        state="memory", discover=False, routes={"a": nothing}, defaults=nothing, tools={},
    ) == ()  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value"),
    [("strict", True)],
)
def test_setting_of_a_route_is_told_where_it_is_given(setting: str, value: object) -> None:
    assert places(routes={"a": {setting: value}, "b": {}}) == (f"routes.a.{setting}",)
    assert places(routes={"a": {}}, defaults={setting: value}) == (f"defaults.{setting}",)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"state": "redis://host"}, "state"),
        ({"discover": True}, "discover"),
        ({"routes": {"a": {"replicas": [{"url": "demo://", "responses": False}]}}}, "routes.a.replicas[0].responses"),
    ],
)
def test_other_setting_is_told_with_its_place(settings: dict[str, Any], place: str) -> None:
    assert places(**settings) == (place,)
