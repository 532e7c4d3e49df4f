"""What settings must not say about each other: names that lead nowhere, names given twice, open doors, absent files."""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from proxy.config.addresses import is_loopback
from proxy.config.complaints import Place
from proxy.config.model import Config
from proxy.config.route import Route


class Problem(NamedTuple):
    """`rests_on` is the part of the file that the judgement needs to be whole."""

    at: Place
    message: str
    rests_on: Place


def problems(config: Config) -> list[Problem]:
    """All of them. Looks at the files that the configuration names."""
    found = [*_names(config), *_aliases(config), *_keys(config), *_files(config)]
    if message := public_without_keys(config, config.server.host):
        found.append(Problem(("server", "host"), message, ("auth", "keys")))
    return found


def public_without_keys(config: Config, host: str) -> str | None:
    """Why the gateway must not listen on `host`, if it must not. To be asked again when a flag or variable overrides
    `server.host`."""
    if is_loopback(host) or config.auth is None or config.auth.keys:
        return None
    return "other machines can reach this address: add auth.keys, or say `auth: none` if everybody may use the gateway"


def _names(config: Config) -> Iterator[Problem]:
    for place, route in _own_settings(config):
        for index, fallback in enumerate(route.fallbacks):
            at = (*place, "fallbacks", index)
            if fallback.route not in config.routes:
                yield Problem(at, f'no route is called "{fallback.route}"', ("routes", fallback.route))
            elif place == ("routes", fallback.route):
                yield Problem(at, "a route cannot fall back to itself", ())
        for index, tool in enumerate(route.tools):
            server = tool if tool in config.tools else tool.partition(".")[0]
            if server not in config.tools:
                yield Problem((*place, "tools", index), f'tools has no "{server}"', ("tools", server))


def _own_settings(config: Config) -> Iterator[tuple[Place, Route]]:
    """Each part that may name routes and tools, without what it inherits."""
    yield ("defaults",), config.defaults
    for name, route in config.routes.items():
        inherited = {"fallbacks", "tools"} - route.model_fields_set
        yield ("routes", name), route.model_copy(update=dict.fromkeys(inherited, ()))


def _aliases(config: Config) -> Iterator[Problem]:
    if config.defaults.aliases:
        yield Problem(("defaults", "aliases"), "an alias belongs to one route; give it there", ())
        return
    owners: dict[str, str] = {}
    for name, route in config.routes.items():
        for index, alias in enumerate(route.aliases):
            at = ("routes", name, "aliases", index)
            if alias in config.routes:
                yield Problem(at, f'"{alias}" is a route\'s name already', ())
            elif alias in owners:
                yield Problem(at, f'"{alias}" is an alias of "{owners[alias]}" already', ())
            owners.setdefault(alias, name)


def _keys(config: Config) -> Iterator[Problem]:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, key in enumerate(config.auth_keys):
        at: Place = ("auth", "keys", index)
        if key.name in names:
            yield Problem((*at, "name"), f'another key is called "{key.name}" already', ())
        names.add(key.name)
        try:
            owner = owners.setdefault(key.digest(), key.name)
        except OSError:
            yield Problem((*at, "key_file"), "this file cannot be read", ())
        except ValueError as exc:
            yield Problem((*at, "key_file"), str(exc), ())
        else:
            if owner != key.name:
                yield Problem(at, f'is the same key as "{owner}"', ())


def _files(config: Config) -> Iterable[Problem]:
    tls = config.server.tls
    for name, path in (("certificate", tls.certificate), ("key", tls.key)) if tls else ():
        if not path.is_file() or not os.access(path, os.R_OK):
            yield Problem(("server", "tls", name), "this file is not there, or cannot be read", ())
