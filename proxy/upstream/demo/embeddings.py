"""Embeddings of the built-in model: deterministic unit vectors; texts that share words point the same way."""

from __future__ import annotations

import base64
import math
import struct
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from pydantic import Field

from proxy.upstream.demo.answer import Answer, Refusal, Stamp, Whole, encoded
from proxy.upstream.demo.completions import texts_of
from proxy.upstream.demo.conversation import Shape, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.upstream.demo.settings import DemoSettings

DIMENSIONS = 256
READ_CHARACTERS = 20_000
PLACES = 3
"""Components that each feature of a text adds to."""


class EmbeddingsRequest(Shape):
    """The members of an embeddings request that the built-in model minds."""

    model: str = "demo"
    input: str | list[str] | list[int] | list[list[int]] = Field(min_length=1, max_length=10_000_000)
    dimensions: int | None = Field(default=None, ge=1, le=4096)
    encoding_format: Literal["float", "base64"] | None = None


def answered(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer `POST /v1/embeddings`; raises Refusal, or pydantic's ValidationError for a body of another shape."""
    request = EmbeddingsRequest.model_validate_json(body)
    texts = texts_of(request.input)
    if len(texts) > 2048 or not all(texts):
        raise Refusal(400, "input: give 1 to 2048 texts, none of them empty.", param="input")
    in_base64 = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _worded(vector, in_base64)}
        for index, vector in enumerate(embedding(text, request.dimensions or DIMENSIONS) for text in texts)
    ]
    given = sum(map(counted, texts))
    usage = {"prompt_tokens": given, "total_tokens": given}
    answer = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return Whole(200, encoded(answer), settings.first_s)


def embedding(text: str, dimensions: int) -> list[float]:
    """A vector of length 1."""
    vector = [0.0] * dimensions
    for feature in _features(text[:READ_CHARACTERS].lower()):
        mark = feature.encode("utf-8", "replace")
        for salt in range(PLACES):
            drawn = crc32(mark, salt)
            vector[(drawn >> 1) % dimensions] += 1.0 if drawn & 1 else -1.0
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else [1.0] + [0.0] * (dimensions - 1)


def _features(text: str) -> Iterator[str]:
    """Words, each piece of three characters of them, and the text as a whole."""
    for word in text.split():
        yield word
        marked = f"<{word}>"
        yield from (marked[at : at + 3] for at in range(len(marked) - 2))
    yield f"={text}"


def _worded(vector: list[float], in_base64: bool) -> Any:
    """A list of numbers, or little-endian 32-bit floats in base64, which the official clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii") if in_base64 else vector
