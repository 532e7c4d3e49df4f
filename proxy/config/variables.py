"""Variables in the file's text: `${NAME}`, `${NAME:-default}`, `${NAME:?message}`, and `$$` for a dollar sign.

They are put in after the file was parsed, and into values only: whatever a variable holds, it stays one piece of text.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from proxy.config.complaints import Finding, Place

_DOLLAR = re.compile(r"\$\$|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<kind>[-?])(?P<rest>[^{}]*))?\})?", re.ASCII)


class VariableError(ValueError):
    """A variable is unset, or not written as one. The message names it and never shows a value."""


def expand(data: Any, environ: Mapping[str, str]) -> tuple[Any, list[Finding]]:
    """A copy of the data with its variables filled in, and what is wrong with them.

    A route's `model` may name an unset variable: it becomes empty, which means "not configured".
    """
    findings: list[Finding] = []

    def copy(value: Any, place: Place) -> Any:
        if isinstance(value, dict):
            return {key: copy(member, (*place, key)) for key, member in value.items()}
        if isinstance(value, list):
            return [copy(item, (*place, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value
        try:
            return fill_in(value, environ, optional=_is_model(place))
        except VariableError as exc:
            findings.append(Finding(place, str(exc)))
            return value

    return copy(data, ()), findings


def fill_in(text: str, environ: Mapping[str, str], *, optional: bool = False) -> str:
    """The text with its variables' values, which are not looked at again. With `optional`, an unset one is empty.

    As in a shell, `:-` and `:?` take an empty variable for an unset one. Raises VariableError.
    """
    return _DOLLAR.sub(_filler(environ, optional), text)


def _filler(environ: Mapping[str, str], optional: bool) -> Callable[[re.Match[str]], str]:
    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.group("name", "kind", "rest")
        if match[0] == "$$":
            return "$"
        if name is None:
            raise VariableError("a variable is written ${NAME}, ${NAME:-default} or ${NAME:?message}; for a $ write $$")
        if kind is None and (optional or name in environ):
            return environ.get(name, "")
        if kind == "-" or environ.get(name):
            return environ.get(name) or rest
        if kind == "?":
            raise VariableError(
                f"the variable {name} is not set: {rest}" if rest else f"the variable {name} is not set"
            )
        raise VariableError(f"the variable {name} is not set; ${{{name}:-}} would make it optional")

    return value


def _is_model(place: Place) -> bool:
    return place == ("defaults", "model") or (len(place) == 3 and place[0] == "routes" and place[2] == "model")
