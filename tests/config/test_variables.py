from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.variables import VariableError, expand, fill_in

any_example = settings(derandomize=True, database=None, deadline=None)

ENVIRON = {"NAME": "value", "EMPTY": "", "ODD": "${NAME} $$ {x: y}\n- z"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${NAME}", "value"),
        ("a${NAME}b${NAME}", "avaluebvalue"),
        ("${EMPTY}", ""),
        ("${NAME:-other}", "value"),
        ("${EMPTY:-other}", "other"),
        ("${UNSET:-other}", "other"),
        ("${UNSET:-}", ""),
        ("${UNSET:-a:-b ?c}", "a:-b ?c"),
        ("${NAME:?say why}", "value"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$value"),
        ("pa$word", "pa$word"),
        ("$NAME", "$NAME"),
        ("5$", "5$"),
        ("${ODD}", "${NAME} $$ {x: y}\n- z"),
    ],
)
def test_variables_are_filled_in(text: str, filled: str) -> None:
    assert fill_in(text, ENVIRON) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${UNSET}", "the variable UNSET is not set"),
        ("${UNSET:?give it a key}", "the variable UNSET is not set: give it a key"),
        ("${EMPTY:?}", "the variable EMPTY is not set"),
        ("hunter2${", "a variable is written"),
        ("${}", "a variable is written"),
        ("${1X}", "a variable is written"),
        ("${NAME-hunter2}", "a variable is written"),
        ("${NAME:+hunter2}", "a variable is written"),
        ("${NAME:-${OTHER}}", "a variable is written"),
        ("${ NAME }", "a variable is written"),
    ],
)
def test_unset_or_misspelt_variable_is_told_without_the_text(text: str, message: str) -> None:
    with pytest.raises(VariableError) as caught:
        fill_in(text, ENVIRON)
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


def test_unset_variable_is_nothing_in_a_model_only() -> None:
    data = {"routes": {"a": {"model": "${UNSET}", "aliases": ["${UNSET}"]}}, "defaults": {"model": "${UNSET}"}}
    filled, findings = expand(data, {})
    assert filled["routes"]["a"]["model"] == ""
    assert filled["defaults"]["model"] == ""
    assert [finding.at for finding in findings] == [("routes", "a", "aliases", 0)]


def test_route_called_model_is_no_model() -> None:
    _, findings = expand({"routes": {"model": "${UNSET}"}}, {})
    assert [finding.at for finding in findings] == [("routes", "model")]


def test_model_that_insists_on_its_variable_complains() -> None:
    _, findings = expand({"routes": {"a": {"model": "${UNSET:?name a model}"}}}, {})
    assert [finding.message for finding in findings] == ["the variable UNSET is not set: name a model"]


def test_all_unset_variables_are_found() -> None:
    _, findings = expand({"a": ["${X}", {"b": "${Y}"}], "c": 5, "d": None}, {})
    assert [finding.at for finding in findings] == [("a", 0), ("a", 1, "b")]


def test_keys_are_left_alone() -> None:
    assert expand({"${NAME}": 1}, ENVIRON) == ({"${NAME}": 1}, [])


TREES = st.recursive(
    st.sampled_from(["${A}", "x${B:-y}", "plain", 5, True, None]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def shape(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: shape(value) for key, value in data.items()}
    return [shape(item) for item in data] if isinstance(data, list) else type(data)


@any_example
@given(TREES, st.text(), st.text())
def test_no_variable_can_change_the_structure(data: Any, first: str, second: str) -> None:
    filled, findings = expand(data, {"A": first, "B": second})
    assert shape(filled) == shape(data)
    assert findings == []


@any_example
@given(st.text(), st.text())
def test_a_variable_arrives_as_it_is(before: str, value: str) -> None:
    assert fill_in(before.replace("$", "$$") + "${A}", {"A": value}) == before + value
