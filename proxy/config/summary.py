"""The configuration for people: a line for each route, and the whole of it as the file would say it. Secrets are `***`."""

import yaml

from proxy.config.model import Config
from proxy.config.route import Route


def summary(config: Config) -> list[str]:
    """One line a route, in the file's order: name, upstream model, protocol, replicas, aliases."""
    return [_line(name, route) for name, route in config.routes.items()]


def resolved(config: Config) -> str:
    """The effective configuration as YAML, defaults filled in. It loads again, but for the secrets."""
    data = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _line(name: str, route: Route) -> str:
    parts = [f"model {route.model}" if route.model else "not configured (its model is empty)", route.protocol]
    parts.append({0: "no replica", 1: "1 replica"}.get(len(route.replicas), f"{len(route.replicas)} replicas"))
    if route.aliases:
        parts.append(f"also {', '.join(route.aliases)}")
    return f"{name}: {', '.join(parts)}"
