from pathlib import Path

import yaml

from proxy.config.loader import load, shipped
from proxy.config.model import Config
from proxy.config.summary import resolved, summary

FULL = Path(__file__).with_name("full.yaml")


def test_summary_has_a_line_for_each_route() -> None:
    assert summary(load(FULL, {})) == [
        "echo: model echo, openai, 1 replica",
        "empty: model empty, openai, no replica",
        "chat: model Qwen/Qwen3-32B, anthropic, 2 replicas, also gpt-4o-mini, gpt-4.1",
        "quiet: model quiet, openai, no replica",
    ]


def test_summary_says_what_is_not_configured() -> None:
    config = Config.model_validate({"routes": {"a": {"model": "", "replicas": ["demo://"]}}})
    assert summary(config) == ["a: not configured (its model is empty), openai, 1 replica"]


def test_resolved_configuration_shows_no_secret() -> None:
    text = resolved(load(FULL, {}))
    assert "-secret" not in text
    assert text.count("***") == 8


def test_resolved_configuration_says_everything_in_the_file_s_words() -> None:
    data = yaml.safe_load(resolved(load(shipped(), {})))
    assert data["server"]["max_body"] == "32MiB"
    assert data["server"]["websocket"]["age"] == "1h"
    assert data["state"] == "memory"
    assert data["routes"]["echo"]["timeouts"] == {"connect": "5s", "first_token": "2m", "idle": "1m", "total": "none"}
    assert data["routes"]["echo"]["on_disconnect"] == "cancel"


def test_resolved_configuration_loads_again_as_the_same(tmp_path: Path) -> None:
    config = load(FULL, {})
    path = tmp_path / "routes.yaml"
    path.write_text(resolved(config).replace("state: '***'", "state: redis://h").replace("url: '***'", "url: http://h"))
    again = load(path, {})
    assert resolved(again) == resolved(config)
    assert again.server == config.server
    assert again.routes["chat"].timeouts == config.routes["chat"].timeouts
