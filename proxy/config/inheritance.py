"""How `defaults` reach a route: below its own settings, nested mappings member by member. Pure."""

from typing import TypeVar

from proxy.config.route import Route
from proxy.config.settings import Settings

S = TypeVar("S", bound=Settings)


def effective(name: str, route: Route, defaults: Route) -> Route:
    """The route with what it leaves unsaid from `defaults`, its name as `model` where neither gives one, and without a
    fallback to itself that it inherited."""
    merged = merge(route, defaults)
    values = dict(merged)
    if "model" not in route.model_fields_set | defaults.model_fields_set:
        values["model"] = name
    if "fallbacks" not in route.model_fields_set:
        values["fallbacks"] = tuple(fallback for fallback in merged.fallbacks if fallback.route != name)
    return Route.model_construct(_fields_set=set(route.model_fields_set), **values)


def merge(own: S, defaults: S) -> S:
    """`own` above `defaults`. What counts as set stays what `own` says itself."""
    values = dict(own)
    for name in defaults.model_fields_set:
        default = getattr(defaults, name)
        if name not in own.model_fields_set:
            values[name] = default
        elif isinstance(values[name], Settings) and isinstance(default, Settings):
            values[name] = merge(values[name], default)
    return own.model_construct(_fields_set=set(own.model_fields_set), **values)
