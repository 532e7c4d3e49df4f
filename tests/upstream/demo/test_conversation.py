import pytest

from proxy.upstream.demo.answer import Refusal
from proxy.upstream.demo.conversation import Part, Tool, counted, offered, text_of, wanted_shape

CLOCK, SEARCH = Tool("clock", {}), Tool("search", {})


def test_a_choice_settles_which_tools_are_left_and_whether_one_must_be_called() -> None:
    both = (CLOCK, SEARCH)
    assert offered(both, "auto") == (both, False)
    assert offered(both, "none") == ((), False)
    assert offered(both, "required") == (both, True)
    assert offered(both, "named", "search") == ((SEARCH,), True)


@pytest.mark.parametrize(("tools", "choice", "name"), [((), "required", None), ((CLOCK,), "named", "search")])
def test_a_choice_that_cannot_be_met_is_refused(tools: tuple[Tool, ...], choice: str, name: str | None) -> None:
    with pytest.raises(Refusal) as refusal:
        offered(tools, choice, name)
    assert (refusal.value.status, refusal.value.param) == (400, "tool_choice")


def test_tokens_given_are_counted_by_their_bytes() -> None:
    assert [counted(text) for text in ("", "a", "four", "five!", "水车", "\ud83d")] == [0, 1, 1, 2, 2, 1]


def test_the_text_of_a_content_is_its_text_parts() -> None:
    assert text_of(None) == ""
    assert text_of("plain") == "plain"
    assert text_of([Part(text="one"), Part(), Part(text="two")]) == "one\ntwo"


def test_a_response_format_asks_for_its_schema_for_any_object_or_for_text() -> None:
    schema = {"type": "object"}
    assert wanted_shape("json_schema", schema) == schema
    assert wanted_shape("json_object", None) == {"properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    assert wanted_shape("text", None) is None
