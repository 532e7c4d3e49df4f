import base64
import math
import struct
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from proxy.upstream.demo.embeddings import DIMENSIONS, embedding
from tests.support.demo import refused, whole

PATH = "/v1/embeddings"
ASKED: dict[str, Any] = {"model": "river-7b", "input": "the old mill"}


def likeness(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(embedding(one, DIMENSIONS), embedding(other, DIMENSIONS), strict=True))


@pytest.mark.parametrize("text", ["a", "the old mill", "水车", " ", "\ud83d", "x" * 100_000])
@pytest.mark.parametrize("dimensions", [1, 2, 256, 4096])
def test_a_vector_has_length_one_and_is_always_the_same(text: str, dimensions: int) -> None:
    vector = embedding(text, dimensions)
    assert len(vector) == dimensions
    assert math.isclose(math.hypot(*vector), 1.0)
    assert vector == embedding(text, dimensions)


def test_texts_that_share_words_are_closer_than_texts_that_do_not() -> None:
    assert likeness("the old water mill", "an old watermill") > 0.3 > abs(likeness("the old water mill", "jazz piano"))


def test_each_input_gets_its_vector_in_order() -> None:
    told = whole(PATH, {**ASKED, "input": ["one", "two"]})
    assert [one["index"] for one in told["data"]] == [0, 1]
    assert told["data"][1]["embedding"] == embedding("two", DIMENSIONS)
    read = CreateEmbeddingResponse.model_validate(told, strict=True)
    assert read.usage.prompt_tokens == read.usage.total_tokens == 2


def test_base64_holds_the_same_numbers_as_little_endian_floats() -> None:
    told = whole(PATH, {**ASKED, "encoding_format": "base64", "dimensions": 8})["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(told)) == pytest.approx(embedding("the old mill", 8))


def test_dimensions_are_as_many_as_asked_for() -> None:
    assert len(whole(PATH, {**ASKED, "dimensions": 12})["data"][0]["embedding"]) == 12


@pytest.mark.parametrize(
    "wrong",
    [{"input": ""}, {"input": []}, {"input": ["a", ""]}, {"input": ["a"] * 2049}, {"dimensions": 0}, {"input": {}}],
)
def test_a_wrong_member_is_refused(wrong: dict[str, Any]) -> None:
    assert refused(PATH, {**ASKED, **wrong})[0] == 400
