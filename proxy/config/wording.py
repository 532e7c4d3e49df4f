"""pydantic's errors in the operator's words: what to do, in the file's keys, without the values."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from proxy.config.complaints import Finding, Place
from proxy.config.settings import Settings

_WORDS = {
    "missing": '"{key}" is missing',
    "string_type": "must be text",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "literal_error": "must be {expected}",
}


def findings(error: ValidationError, model: type[Settings]) -> list[Finding]:
    """One finding for each of pydantic's errors about a `model`; none repeats an input."""
    return [
        _finding(details["type"], details["loc"], details.get("ctx", {}), model)
        for details in error.errors(include_url=False, include_input=False)
    ]


def _finding(kind: str, loc: Place, context: Mapping[str, Any], model: type[Settings]) -> Finding:
    place = tuple(step for step in loc if step != "[key]")
    if kind == "extra_forbidden":
        return Finding(place, _unknown(str(place[-1]), _keys(model, place[:-1])), shown=place[:-1])
    if kind == "value_error":
        return Finding(place, str(context["error"]))
    words = _WORDS.get(kind, "is not valid here")
    facts = {name: str(value).replace("'", '"') for name, value in context.items() if name == "expected"}
    return Finding(place, words.format(key=place[-1] if place else "", **facts))


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    shown = key[:80] if key.isprintable() else ascii(key[:80])[1:-1]
    return f'unknown key "{shown}"' + (f'; did you mean "{near[0]}"?' if near else "")


def _keys(model: type[Settings], place: Place) -> Iterable[str]:
    """The keys that the mapping at `place` may have."""
    annotation: Any = model
    for step in place:
        section = _section(annotation)
        if section is not None:
            annotation = section.model_fields[section.file_keys()[str(step)]].annotation
        else:
            annotation = _inner(annotation)
    found = _section(annotation)
    return found.file_keys() if found else ()


def _section(annotation: Any) -> type[Settings] | None:
    """The section that `X` or `X | None` stands for; None for a list or mapping of sections."""
    for choice in (annotation, *(() if get_origin(annotation) in (tuple, dict) else get_args(annotation))):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice  # type: ignore[return-value]
    return None


def _inner(annotation: Any) -> Any:
    """What a list or a mapping holds."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return next((_inner(choice) for choice in get_args(annotation) if get_args(choice)), None)
