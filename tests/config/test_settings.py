from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from proxy.config.settings import Kind, OrNone, Settings


class Inner(Settings):
    short_form = "size"

    size: int = 1


class Outer(Settings):
    inner: Annotated[Inner | None, OrNone()] = Field(default=Inner(), alias="in")
    word: Annotated[str, Kind(lambda value: str(value).upper(), {"type": "string"}, str.lower)] = "A"


def test_key_with_nothing_after_it_counts_as_left_out() -> None:
    outer = Outer.model_validate({"in": None, "word": None})
    assert outer == Outer()
    assert outer.model_fields_set == set()


def test_section_with_nothing_in_it_has_its_defaults() -> None:
    assert Outer.model_validate(None) == Outer()


def test_unknown_key_is_an_error_even_with_nothing_after_it() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Outer.model_validate({"outer": None})


def test_attribute_name_is_no_key() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Outer.model_validate({"inner": {}})


def test_word_none_turns_a_section_off_and_prints_as_itself() -> None:
    outer = Outer.model_validate({"in": "none"})
    assert outer.inner is None
    assert outer.model_dump(mode="json", by_alias=True) == {"in": "none", "word": "a"}


def test_short_form_is_the_one_member() -> None:
    assert Outer.model_validate({"in": "7"}).inner == Inner(size=7)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Outer(), "word", "B")  # noqa: B010


def test_errors_do_not_show_the_input() -> None:
    with pytest.raises(ValidationError) as caught:
        Inner.model_validate({"size": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_kind_reads_and_prints() -> None:
    outer = Outer.model_validate({"word": "b"})
    assert outer.word == "B"
    assert outer.model_dump(mode="json")["word"] == "b"


def test_file_keys_lead_to_attributes() -> None:
    assert Outer.file_keys() == {"in": "inner", "word": "word"}
