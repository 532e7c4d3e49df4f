import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upstream.demo.arguments import Material, arguments_for


def filled(prompt: str, schema: dict[str, Any], *, root: dict[str, Any] | None = None) -> Any:
    """What is made up for a single required member of this schema."""
    whole = {"type": "object", "properties": {"it": schema}, "required": ["it"], **(root or {})}
    return arguments_for(whole, Material(prompt))["it"]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "default": "kept"}, "kept"),
        ({"const": 7}, 7),
        ({"enum": ["celsius", "kelvin"]}, "celsius"),
        ({"type": "string", "examples": ["shown"]}, "shown"),
        ({"type": "string", "format": "date"}, "2025-01-31"),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "number", "maximum": 0.5}, 0.5),
        ({"type": "integer", "minimum": math.inf}, 1),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 1}),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, True),
        ({"$ref": "#/$defs/unit"}, "km"),
        ({"$ref": "#/$defs/nowhere"}, "valleys"),
        (True, "valleys"),
    ],
)
def test_a_member_is_filled_by_what_its_schema_says(schema: Any, value: Any) -> None:
    assert filled("of valleys", schema, root={"$defs": {"unit": {"enum": ["km"]}}}) == value


def test_only_required_members_are_filled() -> None:
    schema = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
    assert arguments_for(schema, Material('weather in "Åre" for 3 days')) == {"city": "Åre"}


def test_quoted_texts_names_and_numbers_of_the_prompt_are_handed_out_in_order() -> None:
    text, number = {"type": "string"}, {"type": "integer"}
    schema = {
        "properties": {"from": text, "to": text, "nights": number, "guests": number},
        "required": ["from", "to", "nights", "guests"],
    }
    material = Material('take me from "the old mill" to Stora Sjöfallet, 3 nights, 2 guests')
    assert arguments_for(schema, material) == {
        "from": "the old mill",
        "to": "Stora Sjöfallet",
        "nights": 3,
        "guests": 2,
    }


def test_a_query_is_the_whole_prompt_when_nothing_in_it_stands_out() -> None:
    schema = {"properties": {"query": {"type": "string"}}, "required": ["query"]}
    assert arguments_for(schema, Material("look up\nwater wheels")) == {"query": "look up water wheels"}


def test_a_tools_own_name_is_not_an_argument() -> None:
    assert Material('use "clock" for "noon"', ("clock",)).text("at") == "noon"


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
    json.dumps(arguments_for({"$ref": "#/$defs/node", "$defs": {"node": node}}, Material("")))
    assert filled("", {"$ref": "#/$defs/loop"}, root={"$defs": {"loop": {"$ref": "#/$defs/loop"}}}) == "demo"


KEYWORDS = [
    *("type", "enum", "const", "default", "examples", "format", "anyOf", "$ref", "properties", "required", "a"),
    *("items", "minItems", "minimum", "maximum", "maxLength"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["string", "object", "array", "integer"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYWORDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(derandomize=True, database=None, deadline=None)
@given(JSON, st.text(max_size=60))
def test_no_schema_however_wrong_is_too_much(schema: Any, prompt: str) -> None:
    root = {"properties": {"a": schema}, "required": ["a"]}
    assert set(arguments_for(root, Material(prompt))) == {"a"}
