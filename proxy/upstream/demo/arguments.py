"""Arguments for a tool, made up from its JSON Schema and the prompt's words: the required members, filled plausibly.

Not a validator: what a schema says beyond types, enums, defaults and bounds is not looked at."""

from __future__ import annotations

import math
import re
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxy.upstream.demo.conversation import JsonObject

DEEPEST = 8
QUOTED = re.compile(r"\"([^\"]{1,200})\"|“([^”]{1,200})”|`([^`]{1,200})`|(?<!\w)'([^']{1,200})'(?!\w)")
NUMBER = re.compile(r"(?<![\w.])-?\d{1,12}(?:\.\d{1,6})?(?![\w])")
NAME = re.compile(r"(?<=[\w,:;] )[^\W\d_a-z]\w+(?: [^\W\d_a-z]\w+)*")
WORD = re.compile(r"[^\W\d_]{2,40}")
FORMATS = {
    "date": "2025-01-31",
    "time": "12:00:00Z",
    "date-time": "2025-01-31T12:00:00Z",
    "email": "demo@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
}
WHOLE_PROMPT = ("query", "question", "prompt", "text", "message", "input")
"""Members that want to be told everything."""


class Material:
    """What the prompt has to offer, each thing handed out once: quoted texts, names, numbers."""

    def __init__(self, prompt: str, tool_names: tuple[str, ...] = ()) -> None:
        prompt = prompt[:2000]
        quoted = ["".join(groups) for groups in QUOTED.findall(prompt)]
        self.texts: deque[str] = deque(text for text in [*quoted, *NAME.findall(prompt)] if text not in tool_names)
        self.numbers = deque(float(number) for number in NUMBER.findall(prompt))
        self.line = " ".join(prompt.split())
        self.longest_word: str = max(WORD.findall(prompt), key=len, default="demo")

    def text(self, member: str) -> str:
        if self.texts:
            return self.texts.popleft()
        return self.line if member.lower() in WHOLE_PROMPT and self.line else self.longest_word

    def number(self) -> float:
        return self.numbers.popleft() if self.numbers else 1.0


def arguments_for(schema: JsonObject, material: Material) -> JsonObject:
    """An object that fits the schema of a tool's arguments; an empty one where the schema asks for nothing."""
    value = _value(schema, "", material, schema, 0)
    return value if isinstance(value, dict) else {}


def _value(schema: Any, member: str, material: Material, root: JsonObject, depth: int) -> Any:
    schema = _settled(schema, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    match _type(schema):
        case "object":
            return _object(schema, material, root, depth)
        case "array":
            least = schema.get("minItems", 1)
            count = min(least, 8) if isinstance(least, int) and depth < DEEPEST else 0
            return [_value(schema.get("items"), member, material, root, depth + 1) for _ in range(count)]
        case "integer":
            return int(_bounded(schema, material.number()))
        case "number":
            return _bounded(schema, material.number())
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _text(schema, member, material)


def _settled(schema: Any, root: JsonObject) -> JsonObject:
    """The schema itself, behind local references and the first alternative that is not null; {} when it is none."""
    for _ in range(DEEPEST):
        if not isinstance(schema, dict):
            return {}
        choices: list[Any] = next(
            (schema[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)), []
        )
        choices = [choice for choice in choices if choice != {"type": "null"}]
        if isinstance(schema.get("$ref"), str):
            schema = _referred(schema["$ref"], root)
        elif choices and "default" not in schema:
            schema = choices[0]
        else:
            return schema
    return {}


def _referred(reference: str, root: JsonObject) -> Any:
    found: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _type(schema: JsonObject) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None and "properties" in schema:
        kind = "object"
    return kind if isinstance(kind, str) else "string"


def _object(schema: JsonObject, material: Material, root: JsonObject, depth: int) -> JsonObject:
    members = schema.get("properties")
    required = schema.get("required")
    if not isinstance(members, dict) or not isinstance(required, list) or depth >= DEEPEST:
        return {}
    return {
        name: _value(members.get(name), name, material, root, depth + 1) for name in required if isinstance(name, str)
    }


def _bounded(schema: JsonObject, number: float) -> float:
    least, most = schema.get("minimum"), schema.get("maximum")
    if isinstance(least, int | float) and math.isfinite(least):
        number = max(number, least)
    if isinstance(most, int | float) and math.isfinite(most):
        number = min(number, most)
    return number


def _text(schema: JsonObject, member: str, material: Material) -> str:
    if str(schema.get("format")) in FORMATS:
        return FORMATS[str(schema["format"])]
    text = material.text(member)
    longest = schema.get("maxLength")
    return text[:longest] if isinstance(longest, int) and longest > 0 else text
