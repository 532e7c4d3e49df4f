from typing import Any

import pytest
from pydantic import ValidationError

from proxy.config.complaints import spell
from proxy.config.model import Config
from proxy.config.wording import findings


def said(**settings: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(settings)
    return [(spell(finding.at), finding.message) for finding in findings(caught.value, Config)]


@pytest.mark.parametrize(
    ("settings", "place", "message"),
    [
        ({"sever": {}}, "sever", 'unknown key "sever"; did you mean "server"?'),
        ({"qqq": {}}, "qqq", 'unknown key "qqq"'),
        ({"server": {"maxbody": 1}}, "server.maxbody", 'unknown key "maxbody"; did you mean "max_body"?'),
        ({"server": {"websocket": {"pin": 1}}}, "server.websocket.pin", 'unknown key "pin"; did you mean "ping"?'),
        ({"routes": {"a": {"replcias": []}}}, "routes.a.replcias", 'unknown key "replcias"; did you mean "replicas"?'),
        ({"defaults": {"helth": 1}}, "defaults.helth", 'unknown key "helth"; did you mean "health"?'),
        (
            {"routes": {"a": {"health": {"evry": "1s"}}}},
            "routes.a.health.evry",
            'unknown key "evry"; did you mean "every"?',
        ),
        (
            {"routes": {"a": {"replicas": [{"url": "http://a", "apikey": "x"}]}}},
            "routes.a.replicas[0].apikey",
            'unknown key "apikey"; did you mean "api_key"?',
        ),
        ({"auth": {"keys": [{"nam": "x"}]}}, "auth.keys[0].nam", 'unknown key "nam"; did you mean "name"?'),
        ({"tools": {"t": {"mpc": {}}}}, "tools.t.mpc", 'unknown key "mpc"; did you mean "mcp"?'),
        ({"server": {"a\nb": 1}}, 'server["a\\nb"]', 'unknown key "a\\nb"'),
        ({"tools": {"t": {}}}, "tools.t.mcp", '"mcp" is missing'),
        ({"server": 5}, "server", "must be a mapping"),
        ({"routes": []}, "routes", "must be a mapping"),
        ({"routes": {"a": []}}, "routes.a", "must be a mapping"),
        ({"routes": {"a": {"aliases": "x"}}}, "routes.a.aliases", "must be a list"),
        ({"routes": {"a": {"protocol": 5}}}, "routes.a.protocol", 'must be "openai", "anthropic" or "ollama"'),
        ({"tools": {"t": {"mcp": {"command": []}}}}, "tools.t.mcp.command", "must not be empty"),
        ({"tools": {"t": {"mcp": {"command": [1]}}}}, "tools.t.mcp.command[0]", "must be text"),
        ({"routes": {"": "demo://"}}, 'routes[""]', "must be a name: some text without control characters, "
         "not beginning or ending with a blank"),
        ({"server": {"port": "x"}}, "server.port", "must be a whole number"),
        ({"auth": {"keys": [{"name": "x"}]}}, "auth.keys[0]", "needs exactly one of key, key_sha256 and key_file"),
        (
            {"routes": {"a": {"replicas": [{"url": "http://a", "headers": {"Host": "x"}}]}}},
            "routes.a.replicas[0].headers.Host",
            "is a header that the gateway writes itself",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_error_is_told_in_plain_words(settings: dict[str, Any], place: str, message: str) -> None:
    assert (place, message) in said(**settings)


def test_unknown_key_is_shown_at_the_mapping_it_is_in() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"routes": {"a": {"replcias": []}}})
    (finding,) = findings(caught.value, Config)
    assert finding.shown == ("routes", "a")


def test_all_errors_are_told() -> None:
    assert len(said(server={"port": -1, "workers": 0}, routes={"a": {"balance": "x", "replicas": [5, "x"]}})) == 5


def test_no_message_repeats_a_value() -> None:
    settings = {
        "server": {
            "host": "hunter2 ",
            "port": "hunter2",
            "max_body": "hunter2",
            "drain": "hunter2",
            "gather": "hunter2",
        },
        "admin": {"listen": "hunter2", "key": ["hunter2"]},
        "cors": {"origins": ["hunter2"]},
        "auth": {"keys": [{"name": ["hunter2"], "key": {"hunter2": 1}, "key_sha256": "hunter2"}, "hunter2"]},
        "state": "hunter2",
        "discover": "hunter2",
        "routes": {
            "a": "hunter2",
            "b": {"protocol": "hunter2", "balance": "hunter2", "auth": "hunter2", "health": "hunter2"},
        },
        "tools": {"t": {"mcp": {"url": "hunter2", "headers": {"X": "hunter2\n"}}, "timeout": "hunter2"}},
    }
    found = said(**settings)
    assert len(found) >= 18
    assert "hunter2" not in str(found)
