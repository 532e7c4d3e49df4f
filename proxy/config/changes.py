"""What a file that was read again changes: what of it a running gateway takes up, what needs a restart, and the words
for both. Names of routes, tools and keys do appear in them; no value does."""

from collections.abc import Iterator, Mapping
from typing import Any

from proxy.config.complaints import Place, spell
from proxy.config.model import Config
from proxy.config.route import Replica, Route
from proxy.config.settings import Settings

NAMES_LISTED = 10
_RESTART = ("server", "state", "discover")
"""Sections that are used once, at the start; of `admin` everything but the key."""


def taken_up(running: Config, read: Config) -> Config:
    """`read` as a gateway that runs with `running` can use it: what needs a restart is as it was."""
    admin = running.admin.model_copy(update={"key": read.admin.key})
    kept = {name: getattr(running, name) for name in _RESTART}
    return read.model_copy(update={**kept, "admin": admin})


def need_restart(running: Config, read: Config) -> tuple[str, ...]:
    """The places where `read` says something that only a restart takes up: `("server.port", "admin.listen")`."""
    taken = taken_up(running, read)
    return tuple(spell(place) for place in _differences(taken, read, ()))


def changes(before: Config, after: Config) -> tuple[str, ...]:
    """What is different, a few words each: `routes added: a, b`, `routes changed: c (replicas: 1 added; limits)`."""
    both = [name for name in before.routes if name in after.routes]
    routes = {name: _in_route(before.routes[name], after.routes[name]) for name in both}
    tools = {name: "" for name in before.tools if before.tools[name] != after.tools.get(name, before.tools[name])}
    old, new = ({key.name: key for key in config.auth_keys} for config in (before, after))
    keys = {name: "" for name in old if old[name] != new.get(name, old[name])}
    told = [
        *_listed("routes", before.routes, after.routes, {name: how for name, how in routes.items() if how}),
        *_listed("tools", before.tools, after.tools, tools),
        *_listed("keys", old, new, keys),
    ]
    if before.cors != after.cors:
        told.append("cors.origins")
    if before.admin.key != after.admin.key:
        told.append("admin.key")
    return tuple(told)


def _listed(
    what: str, before: Mapping[str, object], after: Mapping[str, object], changed: Mapping[str, str]
) -> Iterator[str]:
    """`routes added: …`, `routes removed: …`, `routes changed: …`, as far as there are any."""
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    for how, names in (("added", added), ("removed", removed)):
        if names:
            yield f"{what} {how}: {_few(names)}"
    if changed:
        yield f"{what} changed: {_few([f'{name} ({how})' if how else name for name, how in changed.items()])}"


def _in_route(before: Route, after: Route) -> str:
    """What of a route is different: `replicas: 1 added, 2 removed; limits`."""
    told = []
    if before.replicas != after.replicas:
        told.append(_in_replicas(before.replicas, after.replicas))
    keys = Route.file_keys()
    told += [key for key, name in keys.items() if name != "replicas" and getattr(before, name) != getattr(after, name)]
    return "; ".join(told)


def _in_replicas(before: tuple[Replica, ...], after: tuple[Replica, ...]) -> str:
    old, new = [replica.url for replica in before], [replica.url for replica in after]
    counts = ((len(_missing(old, new)), "added"), (len(_missing(new, old)), "removed"))
    said = [f"{count} {how}" for count, how in counts if count]
    return f"replicas: {', '.join(said) or 'settings'}"


def _missing(known: list[Any], listed: list[Any]) -> list[Any]:
    """What of `listed` is not in `known`, each as often."""
    left = list(known)
    missing = []
    for each in listed:
        if each in left:
            left.remove(each)
        else:
            missing.append(each)
    return missing


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(names[:NAMES_LISTED]) + more


def _differences(one: Settings, other: Settings, place: Place) -> Iterator[Place]:
    """The innermost places where they differ."""
    for key, name in type(one).file_keys().items():
        first, second = getattr(one, name), getattr(other, name)
        if first == second:
            continue
        if isinstance(first, Settings) and type(first) is type(second):
            yield from _differences(first, second, (*place, key))
        else:
            yield (*place, key)
