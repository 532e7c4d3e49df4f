"""Settings that the file may have and the program accepts, but that do nothing yet.

One table; a row goes when its machinery comes. Start-up says what of it a configuration uses.
"""

from collections.abc import Callable, Iterator
from typing import Any

from proxy.config.complaints import Place, spell
from proxy.config.model import Config
from proxy.config.settings import Settings

Row = tuple[str, Callable[[Any], bool]]


def _given(value: object) -> bool:
    """Anything but none, off, false and what is empty."""
    return value not in (None, "off", False, (), {})


# By the kind of section: the file's key, and whether its value asks for something that is not there.
_PENDING: dict[str, tuple[Row, ...]] = {
    "Config": (("state", _given), ("discover", _given)),
    "Route": (("strict", _given),),
    "Replica": (("responses", lambda has: not has),),
}


def pending(config: Config) -> tuple[str, ...]:
    """The places of such settings that the file gives: `("discover", "routes.chat.fallbacks")`."""
    return tuple(spell(place) for place in _places(config, ()))


def _places(section: Settings, place: Place) -> Iterator[Place]:
    """What the file says in this section, and in those within it."""
    keys = type(section).file_keys()
    said = {key: getattr(section, name) for key, name in keys.items() if name in section.model_fields_set}
    rows = dict(_PENDING.get(type(section).__name__, ()))
    for key, value in said.items():
        if key in rows:
            if rows[key](value):
                yield (*place, key)
            continue
        for step, inner in _inner(value):
            yield from _places(inner, (*place, key, *step))


def _inner(value: object) -> Iterator[tuple[Place, Settings]]:
    """The sections in a value: itself, its items or its members."""
    if isinstance(value, Settings):
        yield (), value
    elif isinstance(value, tuple):
        yield from (((index,), item) for index, item in enumerate(value) if isinstance(item, Settings))
    elif isinstance(value, dict):
        yield from (((name,), item) for name, item in value.items() if isinstance(item, Settings))
