"""What a file that was read again changes, in words, and what of it has to wait for a restart."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.changes import changes, need_restart, taken_up
from proxy.config.model import Config

ROUTES: dict[str, Any] = {"a": "demo://", "b": {"replicas": ["http://gpu-1:8000", "http://gpu-2:8000"]}}


def config(**sections: Any) -> Config:
    return Config.model_validate({"routes": ROUTES, **sections})


def test_the_same_file_changes_nothing() -> None:
    assert changes(config(), config()) == ()
    assert need_restart(config(), config()) == ()


@pytest.mark.parametrize(
    ("routes", "told"),
    [
        ({**ROUTES, "c": "demo://", "d": "demo://"}, "routes added: c, d"),
        ({"a": "demo://"}, "routes removed: b"),
        ({**ROUTES, "a": {"replicas": ["demo://"], "limits": {"streams": 2}}}, "routes changed: a (limits)"),
        ({**ROUTES, "b": {"replicas": ["http://gpu-2:8000"]}}, "routes changed: b (replicas: 1 removed)"),
        (
            {**ROUTES, "b": {"replicas": ["http://gpu-3:8000", "http://gpu-2:8000"], "keepalive": "1s"}},
            "routes changed: b (replicas: 1 added, 1 removed; keepalive)",
        ),
        (
            {**ROUTES, "b": {"replicas": ["http://gpu-1:8000", {"url": "http://gpu-2:8000", "weight": 2}]}},
            "routes changed: b (replicas: settings)",
        ),
        (
            {**ROUTES, "b": {"replicas": ["http://gpu-1:8000", "http://gpu-1:8000", "http://gpu-2:8000"]}},
            "routes changed: b (replicas: 1 added)",
        ),
    ],
)
def test_routes_are_told_by_name_and_replicas_by_number(routes: dict[str, Any], told: str) -> None:
    assert changes(config(), config(routes=routes)) == (told,)


def test_many_routes_are_cut_short() -> None:
    more = {f"r{number}": "demo://" for number in range(14)}
    [told] = changes(config(), config(routes={**ROUTES, **more}))
    assert told.endswith("r8, r9 and 4 more")


def test_keys_tools_and_the_rest_are_told_without_their_values() -> None:
    before = config(
        auth={"keys": [{"name": "web", "key": "canary-1"}, {"name": "gone", "key": "canary-2"}]},
        tools={"clock": {"mcp": {"command": ["clock", "canary-3"]}}},
    )
    after = config(
        auth={"keys": [{"name": "web", "key": "canary-4"}, {"name": "new", "key": "canary-5"}]},
        tools={"clock": {"mcp": {"command": ["clock", "canary-6"]}}},
        cors={"origins": ["https://canary.example"]},
        admin={"key": "canary-7"},
    )
    told = changes(before, after)
    assert told == (
        "tools changed: clock",
        "keys added: new",
        "keys removed: gone",
        "keys changed: web",
        "cors.origins",
        "admin.key",
    )


def test_what_needs_a_restart_stays_as_it_was_and_is_named() -> None:
    running = config(server={"port": 1}, admin={"key": "old", "listen": "127.0.0.1:2"}, state="redis://h:1/0")
    read = config(
        server={"port": 3, "timeouts": {"headers": "1s"}, "websocket": {"ping": "1s"}},
        admin={"key": "new"},
        state="redis://h:2/0",
        discover=True,
        routes={"a": "demo://"},
    )
    assert need_restart(running, read) == (
        "server.port",
        "server.timeouts.headers",
        "server.websocket.ping",
        "admin.listen",
        "state",
        "discover",
    )
    taken = taken_up(running, read)
    assert (taken.server, taken.admin.listen, taken.state, taken.discover) == (
        running.server,
        running.admin.listen,
        running.state,
        False,
    )
    assert taken.admin.key == read.admin.key
    assert taken.routes == read.routes


def test_a_section_that_comes_whole_is_named_as_one() -> None:
    tls = {"certificate": "/c.pem", "key": "/k.pem"}
    assert need_restart(config(), config(server={"tls": tls})) == ("server.tls",)
