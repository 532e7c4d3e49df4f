"""The tools a route offers: which of its servers' they are, what the model calls them, and back again."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from proxy.toolchain.calls import JsonObject

_FOREIGN = re.compile(r"[^a-zA-Z0-9_-]")
NAME_CHARACTERS = 64
"""OpenAI's limit for a function's name."""
_DIGEST_CHARACTERS = 8


class Listed(Struct, frozen=True):
    """A tool as its server lists it; `schema` is the JSON Schema of its arguments."""

    name: str
    description: str
    schema: JsonObject


class Place(NamedTuple):
    """Where a tool is: the server's name in the file, and the tool's name there."""

    server: str
    tool: str


class Catalogue:
    """What is offered to the model. `functions` goes into a request's `tools` as it is."""

    __slots__ = ("_places", "functions")

    def __init__(self, offered: Mapping[Place, Listed]) -> None:
        names = _function_names(offered)
        self._places = {name: place for place, name in names.items()}
        self.functions = [_function(names[place], tool) for place, tool in offered.items()]

    def __bool__(self) -> bool:
        return bool(self.functions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def find(self, name: str) -> Place | None:
        """The tool a model means by `name`; None where it made the name up."""
        return self._places.get(name)


def server_of(wanted: str, servers: Iterable[str]) -> str:
    """The server that an entry of a route's `tools` names: whole (`clock`), or for one tool (`clock.now`)."""
    known = frozenset(servers)
    return wanted if wanted in known else wanted.partition(".")[0]


def chosen(
    wanted: Sequence[str], listed: Mapping[str, Sequence[Listed]]
) -> tuple[dict[Place, Listed], tuple[str, ...]]:
    """The tools a route's `tools` ask for, in that order, and the entries that led to none.

    `listed` has the tools of each server that could be asked; an entry for another one counts as leading to none.
    """
    offered: dict[Place, Listed] = {}
    missing = []
    for entry in wanted:
        server = server_of(entry, listed)
        only = None if server == entry else entry.removeprefix(f"{server}.")
        found = [tool for tool in listed.get(server, ()) if only is None or tool.name == only]
        offered |= {Place(server, tool.name): tool for tool in found}
        if not found:
            missing.append(entry)
    return offered, tuple(missing)


def _function_names(places: Iterable[Place]) -> dict[Place, str]:
    """`tool` where only one is called so, else `server__tool`, in the characters a function's name may have."""
    places = tuple(places)
    plain = {place: _FOREIGN.sub("_", place.tool) for place in places}
    full = {place: f"{_FOREIGN.sub('_', place.server)}__{plain[place]}" for place in places}
    often = Counter(plain.values())
    names = {place: plain[place] if often[plain[place]] == 1 else full[place] for place in places}
    often = Counter(names.values())
    return {place: _fitting(name, place, unique=often[name] == 1) for place, name in names.items()}


def _fitting(name: str, place: Place, *, unique: bool) -> str:
    """A name that is still not unique, or too long, ends with a digest of what it stands for, the same every time."""
    if name and unique and len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256("\0".join(place).encode("utf-8", "replace")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: NAME_CHARACTERS - _DIGEST_CHARACTERS - 1]}_{digest}"


def _function(name: str, tool: Listed) -> JsonObject:
    function: JsonObject = {"name": name, "parameters": tool.schema}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}
