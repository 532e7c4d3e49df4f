"""The JSON Schema of the file, for editors and for `penstock schema`. Generated from the model.

pydantic describes the sections; added here is what holds everywhere: a value may come from a variable, a key may have
nothing after it, a section may have a short form, and defaults read as the file would say them.
"""

import json
from typing import Any

from proxy.config.model import Config
from proxy.config.route import Replica, Route
from proxy.config.settings import Settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Node = dict[str, Any]

_NOTHING: Node = {"type": "null"}
_VARIABLE: Node = {"$ref": "#/$defs/variable"}
_VARIABLE_MEANS: Node = {
    "description": "A value that comes from a variable: ${NAME}, ${NAME:-default} or ${NAME:?message}.",
    "type": "string",
    "pattern": r"\$\{[A-Za-z_]",
}


def schema() -> Node:
    """JSON Schema, draft 2020-12, in the file's keys."""
    generated = Config.model_json_schema(by_alias=True)
    kinds = {kind.__name__: kind for kind in Settings.__subclasses__()}
    sections = {name: _section(node, kinds[name]) for name, node in sorted(generated.pop("$defs").items())}
    return {
        "$schema": DIALECT,
        "title": "routes.yaml",
        **_section(generated, Config),
        "$defs": sections | {"variable": _VARIABLE_MEANS},
    }


def schema_text() -> str:
    """The schema as `routes.schema.json` has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _section(node: Node, kind: type[Settings]) -> Node:
    """One mapping of the file, with the other ways to write it."""
    defaults = kind.model_construct().model_dump(mode="json", by_alias=True)
    members = {key: _member(member, defaults.get(key)) for key, member in node["properties"].items()}
    mapping: Node = {"type": "object", "properties": members, "additionalProperties": False}
    mapping |= {"required": node["required"]} if "required" in node else {}
    described = {"description": " ".join(node["description"].partition("\n\n")[0].split())}
    if kind.short_form is None:
        return described | mapping
    return described | {"anyOf": [*_short_form(kind), mapping, *([_NOTHING] if kind is Route else ())]}


def _short_form(kind: type[Settings]) -> list[Node]:
    single = Replica if kind is Route else kind
    return _choices(single.model_json_schema(by_alias=True)["properties"][single.short_form])


def _member(node: Node, default: object) -> Node:
    """What may stand after a key: its choices or nothing, told with its default."""
    notes = {name: node[name] for name in ("description",) if name in node}
    if isinstance(default, str | int | bool) and default != "":
        notes["default"] = default
    return notes | {"anyOf": [*_choices(node), _NOTHING]}


def _choices(node: Node) -> list[Node]:
    """The ways to write a value, a variable among them where a plain text would not do anyway."""
    bare = {key: part for key, part in node.items() if key not in ("title", "description", "default", "anyOf")}
    choices = [_inside(choice) for choice in node.get("anyOf", [bare]) if choice != _NOTHING]
    is_scalar = any("$ref" not in choice and choice.get("type") not in ("object", "array") for choice in choices)
    return [*choices, _VARIABLE] if is_scalar and {"type": "string"} not in choices else choices


def _inside(choice: Node) -> Node:
    """The same for what a list or a mapping holds."""
    inner = dict(choice)
    for part in ("items", "additionalProperties"):
        if isinstance(inner.get(part), dict):
            inner[part] = _one(_choices(inner[part]))
    if "properties" in inner:
        inner["properties"] = {key: _one(_choices(member)) for key, member in inner["properties"].items()}
    return inner


def _one(choices: list[Node]) -> Node:
    return choices[0] if len(choices) == 1 else {"anyOf": choices}
