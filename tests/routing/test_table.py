"""The routing table: exact names, keys, and what is missing said in words."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from proxy.access.keys import Key
from proxy.config.loader import load
from proxy.errors import Forbidden, InvalidRequest, ModelNotFound, Unauthorized, Unavailable
from proxy.routing.balancing.two_choices import TwoChoices
from proxy.routing.failure_kind import FailureKind
from proxy.routing.limiter import RouteRules
from proxy.routing.retry import Fallback, RetryRules
from proxy.routing.table import NAMES_LISTED, RoutingTable, Timeouts, ToolLoop, build_table

if TYPE_CHECKING:
    from pathlib import Path

THREE = """
routes:
  chat: {replicas: ["http://gpu-1:8000", "http://gpu-2:8000"], aliases: [gpt, talk], model: llama}
  embed-small: http://gpu-3:8000
  embed-large: http://gpu-4:8000
"""


def table(tmp_path: Path, text: str, **environ: str) -> RoutingTable:
    file = tmp_path / "routes.yaml"
    file.write_text(text, encoding="utf-8")
    return build_table(load(file, environ))


@pytest.mark.parametrize("model", ["chat", "gpt", "talk"])
def test_a_route_is_found_by_its_name_and_its_aliases(model: str, tmp_path: Path) -> None:
    route = table(tmp_path, THREE).find(model, None)
    assert (route.name, route.upstream_model) == ("chat", "llama")
    assert [replica.origin.host for replica in route.replicas] == ["gpu-1", "gpu-2"]
    assert [replica.index for replica in route.replicas] == [0, 1]


@pytest.mark.parametrize("model", ["Chat", "chat ", "cha", "*", "../chat", "ｃhat", "http://gpu-1:8000", "llama"])
def test_a_look_up_is_exact_and_a_404_names_the_models_but_not_the_asked_one(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as raised:
        table(tmp_path, THREE).find(model, None)
    assert raised.value.message == (
        "The model does not exist here. Available models: chat, embed-small, embed-large, gpt, talk."
    )
    assert raised.value.param == "model"


def test_a_key_finds_what_it_may_use_and_is_told_nothing_else(tmp_path: Path) -> None:
    routes = table(tmp_path, THREE)
    key = Key("team", ("embed-*", "gpt"))
    assert routes.find("embed-large", key).name == "embed-large"
    assert routes.find("gpt", key).name == "chat"
    assert routes.models(key) == ["embed-small", "embed-large", "gpt"]
    for model in ("chat", "talk"):
        with pytest.raises(Forbidden, match=r"Available models: embed-small, embed-large, gpt\.") as raised:
            routes.find(model, key)
        assert raised.value.code == "model_not_allowed"
    with pytest.raises(ModelNotFound) as missing:
        routes.find("nothing", key)
    assert "chat" not in missing.value.message


def test_a_key_for_a_route_may_use_its_aliases(tmp_path: Path) -> None:
    routes = table(tmp_path, THREE)
    assert routes.models(Key("team", ("chat",))) == ["chat", "gpt", "talk"]
    assert routes.find("talk", Key("team", ("chat",))).name == "chat"


def test_a_gateway_without_models_says_what_to_do() -> None:
    with pytest.raises(ModelNotFound, match=r"add a route to routes\.yaml"):
        RoutingTable(()).find("chat", None)


def test_a_404_does_not_list_hundreds(tmp_path: Path) -> None:
    lines = [f"  m{number}: http://gpu:8000" for number in range(NAMES_LISTED + 3)]
    with pytest.raises(ModelNotFound, match=rf"m{NAMES_LISTED - 1}, and 3 more\.$"):
        table(tmp_path, "\n".join(["routes:", *lines])).find("nothing", None)


def test_a_route_without_replicas_cannot_be_served(tmp_path: Path) -> None:
    route = table(tmp_path, "routes: {chat: {replicas: []}}").find("chat", None)
    with pytest.raises(Unavailable) as raised:
        route.require_ready()
    assert raised.value.message == "No service configured for model: chat"
    assert (raised.value.status, raised.value.code) == (503, "no_replica_available")


def test_a_route_whose_model_is_an_unset_variable_is_not_configured(tmp_path: Path) -> None:
    text = 'routes: {chat: {model: "${CHAT_MODEL:-}", replicas: ["http://gpu:8000"]}}'
    with pytest.raises(InvalidRequest) as raised:
        table(tmp_path, text).find("chat", None).require_ready()
    assert raised.value.message == "Model chat is not configured. Check environment variables."
    table(tmp_path, text, CHAT_MODEL="llama").find("chat", None).require_ready()


def test_a_route_carries_its_settings(tmp_path: Path) -> None:
    text = """
    routes:
      chat:
        replicas: ["https://api.example/api/v1"]
        auth: passthrough
        keepalive: 3s
        timeouts: {connect: 1s, first_token: 2s, idle: none, total: 4s}
        tools: [clock, search.web]
        toolchain: {max_rounds: 3}
    tools:
      clock: {mcp: {command: [clock]}}
      search: {mcp: {command: [search]}}
    """
    route = table(tmp_path, text).find("chat", None)
    assert route.timeouts == Timeouts(connect_s=1.0, first_token_s=2.0, idle_s=None, total_s=4.0)
    assert (route.passthrough, route.keepalive_s) == (True, 3.0)
    assert (route.tools, route.tool_loop) == (("clock", "search.web"), ToolLoop(max_rounds=3, parallel=8))
    assert route.replicas[0].target("/v1/x", "") == "/api/v1/x"


@pytest.mark.parametrize(
    ("protocol", "credential"),
    [("openai", ("Authorization", "Bearer sk-1")), ("anthropic", ("x-api-key", "sk-1"))],
)
def test_a_replica_carries_its_own_headers_and_key(protocol: str, credential: tuple[str, str], tmp_path: Path) -> None:
    text = """
    routes:
      chat:
        protocol: %s
        replicas:
          - {url: "http://gpu-1:8000", api_key: sk-1, headers: {X-Team: red}}
          - http://gpu-2:8000
    """
    route = table(tmp_path, text % protocol).find("chat", None)
    assert [replica.headers for replica in route.replicas] == [(("X-Team", "red"), credential), ()]


def test_a_route_carries_its_policies(tmp_path: Path) -> None:
    text = """
    routes:
      chat:
        replicas: [{url: "http://gpu-1:8000", weight: 2}, "http://gpu-2:8000"]
        balance: random
        fallbacks: [small, {route: long, for: [context_length]}]
        limits: {streams: 4, queue: 9, queue_timeout: 3s}
        retry: {attempts: 5, max_wait: 2s}
      small: http://gpu-3:8000
      long: http://gpu-4:8000
    """
    route = table(tmp_path, text).find("chat", None)
    assert [replica.weight for replica in route.replicas] == [2, 1]
    assert isinstance(route.balancer, TwoChoices)
    assert route.fallbacks == (Fallback("small"), Fallback("long", (FailureKind.CONTEXT_LENGTH,)))
    assert route.limiter.rules == RouteRules(4, 9, 3.0)
    assert route.retry == RetryRules(5, 2.0)


def test_chance_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("routes: {chat: {balance: random, replicas: ['http://a', 'http://b', 'http://c']}}")
    picks = [
        [route.balancer.pick(route.replicas).index for _ in range(30)]
        for _ in range(2)
        for route in [build_table(load(file, {}), rng=Random(5)).find("chat", None)]
    ]
    assert picks[0] == picks[1]


def test_who_has_shown_a_key_before_is_asked_for_it_as_it_is_now(tmp_path: Path) -> None:
    keys = "auth: {keys: [{name: web, key: %s, models: [%s]}]}\nroutes: {chat: 'demo://', other: 'demo://'}\n"
    before, narrower, other = (table(tmp_path, keys % how) for how in (("k", "'*'"), ("k", "other"), ("new", "'*'")))
    assert before.keys is not None
    shown = before.keys.find("k")
    assert shown is not None
    assert before.holder(shown) is shown
    assert narrower.holder(shown) == Key("web", ("other",))
    for asking in (shown, None):
        with pytest.raises(Unauthorized):
            other.holder(asking)
    everybody = table(tmp_path, "routes: {chat: 'demo://'}\n")
    assert (everybody.holder(shown), everybody.holder(None)) == (shown, None)


def test_a_route_knows_the_table_it_is_in(tmp_path: Path) -> None:
    first = table(tmp_path, "routes: {chat: 'demo://', other: 'demo://'}\n")
    second = build_table(load(tmp_path / "routes.yaml", {}), first)
    assert first.find("chat", None).table is first
    assert second.find("chat", None).table.find("other", None) is second.find("other", None)
