"""What a tool gave as text: for the model, and for a round's summary."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.toolchain.calls import Call
from proxy.toolchain.results import RESULT_CHARACTERS, CallResult, Outcome, cut, failed, outcome_of

TEXT = {"type": "text", "text": "21 °C"}


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (TEXT, "21 °C"),
        ({"type": "resource", "resource": {"uri": "file:///a", "text": "in the file"}}, "in the file"),
        ({"type": "resource", "resource": {"uri": "file:///a", "blob": "AAAA"}}, "[a file, not shown here: file:///a]"),
        ({"type": "resource_link", "uri": "file:///a", "name": "a"}, "[a link: file:///a]"),
        (
            {"type": "image", "data": "AAAA" * 8, "mimeType": "image/png"},
            "[image of type image/png, 24 bytes, not shown here]",
        ),
        (
            {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
            "[audio of type audio/wav, 3 bytes, not shown here]",
        ),
        ({"type": "hologram"}, "[hologram, not shown here]"),
    ],
)
def test_every_kind_of_content_becomes_text(block: dict[str, Any], text: str) -> None:
    assert outcome_of([block], None, is_error=False) == Outcome(text)


def test_several_pieces_stand_below_each_other() -> None:
    assert outcome_of([TEXT, TEXT], None, is_error=False).text == "21 °C\n21 °C"


def test_structured_content_counts_where_there_is_no_text() -> None:
    assert outcome_of([], {"degrees": "21 °C"}, is_error=False).text == '{"degrees": "21 °C"}'
    assert outcome_of([TEXT], {"degrees": 21}, is_error=False).text == "21 °C"


def test_nothing_is_an_empty_text() -> None:
    assert outcome_of([], None, is_error=False) == Outcome("")


def test_a_long_text_is_cut_and_says_so() -> None:
    exactly = "x" * RESULT_CHARACTERS
    assert cut(exactly) == exactly
    shorter = cut(exactly + "yz")
    assert shorter.startswith(exactly + "\n[cut: ")
    assert str(RESULT_CHARACTERS + 2) in shorter
    assert outcome_of([{"type": "text", "text": exactly * 2}], None, is_error=True).text.endswith("characters]")


def result(outcome: Outcome, arguments: str = '{"city":"Köln"}') -> CallResult:
    return CallResult(Call("a", "weather", arguments), outcome, 12.5)


def test_the_model_gets_a_tools_message() -> None:
    assert result(Outcome("21 °C")).message == {"role": "tool", "tool_call_id": "a", "content": "21 °C"}


def test_the_model_is_told_that_it_is_an_error() -> None:
    assert result(failed("no such city")).message["content"] == "Error: no such city"


def test_the_summary_has_arguments_as_json() -> None:
    assert result(failed("no such city")).summary == {
        "id": "a",
        "name": "weather",
        "arguments": {"city": "Köln"},
        "result": "no such city",
        "is_error": True,
        "duration_ms": 12.5,
    }


def test_the_summary_has_other_arguments_as_they_were_written() -> None:
    assert result(Outcome("x"), "{half").summary["arguments"] == "{half"
