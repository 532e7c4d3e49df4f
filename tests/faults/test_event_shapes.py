"""An answer is the same however its bytes come: large, one by one, with any line ends, comments, a byte order mark,
data over several lines. In every dialect that streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.support.dialects import STREAMING, Dialect, ask
from tests.support.model_words import Words
from tests.support.served import one_route, served
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, answering, chunk, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

SAID = ["one", "zwölf", "three"]
LARGE = "x" * 10_000_000


def sent(words: Words) -> bytes:
    return b"".join(words.content(text) for text in SAID) + words.end


def over_lines(words: Words) -> bytes:
    """Each event's JSON broken after its first comma."""
    events = [event.replace(b',"', b',\ndata: "', 1) for event in sent(words).split(b"\n\n")]
    return b"\n\n".join(events)


SHAPES: dict[str, Callable[[Words], bytes]] = {
    "as it is": sent,
    "CRLF": lambda words: sent(words).replace(b"\n", b"\r\n"),
    "CR": lambda words: sent(words).replace(b"\n", b"\r"),
    "BOM": lambda words: b"\xef\xbb\xbf" + sent(words),
    "comments": lambda words: sent(words).replace(b"data: ", b": hm\ndata: "),
    "no blank after the colon": lambda words: sent(words).replace(b"data: ", b"data:"),
    "doubled blank lines": lambda words: sent(words).replace(b"\n\n", b"\n\n\n"),
    "data over several lines": over_lines,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)
async def test_events_are_the_same_however_they_are_sent(shape: str, dialect: Dialect, tmp_path: Path) -> None:
    assert await seen(dialect, [SHAPES[shape](dialect.words)], tmp_path) == SAID


@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)
async def test_events_are_the_same_one_byte_at_a_time(dialect: Dialect, tmp_path: Path) -> None:
    whole = sent(dialect.words)
    assert await seen(dialect, [whole[at : at + 1] for at in range(len(whole))], tmp_path) == SAID


@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)
async def test_an_event_of_10_mb_arrives_whole(dialect: Dialect, tmp_path: Path) -> None:
    assert await seen(dialect, [dialect.words.content(LARGE) + dialect.words.end], tmp_path) == [LARGE]


async def seen(dialect: Dialect, pieces: list[bytes], tmp_path: Path) -> list[str]:
    """What the client reads of an answer in these pieces, each a chunk and a write of its own."""
    script = answering(OK_EVENTS, *[chunk(piece) for piece in pieces], LAST_CHUNK)
    async with scripted_upstream(script) as upstream, served(one_route(upstream.url), tmp_path) as gateway:
        seen = await ask(gateway, dialect)
    assert (seen.errors, seen.done, seen.whole) == ([], True, True)
    return seen.said
