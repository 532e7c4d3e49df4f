"""The configuration for people: a line for each route, and the whole as the file would say it. Secrets are `***`."""

from typing import Any

import yaml

from proxy.config.model import Config
from proxy.config.route import Route


def summary(config: Config) -> list[str]:
    """One line a route, in the file's order: name, upstream model, protocol, replicas, aliases."""
    return [_line(name, route) for name, route in config.routes.items()]


def resolved(config: Config) -> str:
    """The effective configuration as YAML, defaults filled in. It loads again, with `***` for the secrets."""
    data = config.model_dump(mode="json", by_alias=True, exclude={"defaults"})
    return yaml.safe_dump(_given(data), sort_keys=False, allow_unicode=True, width=120)


def shown(config: Config) -> dict[str, Any]:
    """The effective configuration as the file's data, for operators who ask a running gateway: no secret is in it, nor
    a key's digest, nor what a tool's program is told."""
    data: dict[str, Any] = _given(config.model_dump(mode="json", by_alias=True, exclude={"defaults"}))
    for key in data["auth"]["keys"] if config.auth_keys else ():
        for way in {"key", "key_sha256", "key_file"} & key.keys():
            key[way] = "***"
    for tool in data.get("tools", {}).values():
        if "command" in tool["mcp"]:
            tool["mcp"]["command"] = [tool["mcp"]["command"][0], *("***" for _ in tool["mcp"]["command"][1:])]
    return data


def _given(data: Any) -> Any:
    """The data without the members that are not set."""
    if isinstance(data, dict):
        return {key: _given(value) for key, value in data.items() if value is not None}
    return [_given(item) for item in data] if isinstance(data, list) else data


def _line(name: str, route: Route) -> str:
    parts = [f"model {route.model}" if route.model else "not configured (its model is empty)", route.protocol]
    parts.append({0: "no replica", 1: "1 replica"}.get(len(route.replicas), f"{len(route.replicas)} replicas"))
    if route.aliases:
        parts.append(f"also {', '.join(route.aliases)}")
    return f"{name}: {', '.join(parts)}"
