from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upstream.demo.prose import sentences, shortened, tokens_of, written

PROMPT = "Why do rivers meander so slowly through the wide valley?"


@settings(derandomize=True, database=None, deadline=None)
@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokens_of(text)) == text


def test_a_token_is_a_word_piece_with_the_space_before_it() -> None:
    assert tokens_of("Hi, backpressured 水车 it's\n\n**x_1**") == [
        "Hi", ",", " backpres", "sured", " 水车", " it", "'", "s", "\n\n*", "*", "x", "_", "1", "*", "*",
    ]  # fmt: skip


def test_the_same_prompt_gives_the_same_answer_and_another_seed_another() -> None:
    assert written(PROMPT, "0", None) == written(PROMPT, "0", None)
    assert written(PROMPT, "0", None) != written(PROMPT, "1", None)


def test_an_answer_says_what_it_is_and_quotes_the_prompt() -> None:
    text = "".join(written(PROMPT, PROMPT, None))
    assert "demo model" in text
    assert f"“{PROMPT}”" in text


def test_different_prompts_get_different_answers_made_of_their_words() -> None:
    texts = {"".join(islice(sentences(prompt, prompt), 12)) for prompt in (PROMPT, "Tell me of turbines", "水车", "42")}
    assert len(texts) == 4


def test_an_endless_answer_speaks_of_the_prompts_words_and_not_always_the_same_way() -> None:
    said = list(islice(sentences(PROMPT, "seed"), 40))[2:]
    assert len(set(said)) > 20
    assert sum(any(word in sentence for word in ("rivers", "meander", "valley")) for sentence in said) > 10


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(max_size=80), st.integers(1, 120))
def test_a_length_given_is_kept_to_the_token(prompt: str, tokens: int) -> None:
    pieces = written(prompt, prompt, tokens)
    assert len(pieces) == tokens
    assert all(pieces)
    assert pieces[-1] in ".!?”"


def test_longer_prompts_get_longer_answers() -> None:
    assert len(written(PROMPT * 8, "s", None)) > len(written("Hi", "s", None))


@pytest.mark.parametrize("prompt", ["", "  \n", "{curly} {0} %s", "👩‍👩‍👧 🎉", "a\ud83d", "7 8 9", "x" * 5000])
def test_any_prompt_gets_an_answer(prompt: str) -> None:
    assert len(written(prompt, prompt, None)) > 20


def test_a_long_prompt_is_quoted_only_in_part() -> None:
    text = "".join(written("word " * 1000, "s", None))
    assert "…”" in text
    assert len(text) < 2500


def test_what_is_shortened_is_as_long_as_allowed() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"


def test_a_preface_comes_first_and_counts() -> None:
    pieces = written(PROMPT, "s", 30, preface="The clock says noon.\n\n")
    assert "".join(pieces).startswith("The clock says noon.\n\n")
    assert len(pieces) == 30
