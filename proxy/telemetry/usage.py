"""How many tokens a request took: as the upstream counted them, else estimated from what went by.

Finding the counts in a stream's events is `protocols`'; asking for them, dispatch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from proxy.protocols.protocol import StreamProtocol, Watcher
    from proxy.request import RequestBody

BYTES_A_TOKEN: Final = 4
BINARY_BYTES: Final = 1000
"""A string this long, in ASCII and without a blank, is a picture or a sound in base64."""

# What the model reads. The other members steer it.
_PROMPT: Final = frozenset({"messages", "prompt", "suffix", "input", "system", "instructions", "tools"})
# The events around what the model says, before and after it: a role, a finish and `[DONE]`; items and parts; blocks.
_FRAME_EVENTS: Final = {"openai": (1, 2), "responses": (4, 4), "anthropic": (2, 3)}


class _Counts(msgspec.Struct):
    """The names of OpenAI's older endpoints; those of its newer one, and Anthropic's, whose prompt is three of them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Counts | None = None


_counts: Final = msgspec.json.Decoder(_Answer).decode  # a microsecond a kilobyte; nothing else of the answer is built


class Usage(NamedTuple):
    """Tokens read and written, None where nobody knows; `estimated` if either is."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    estimated: bool = False


def usage_of_answer(body: bytes) -> Usage:
    """What an answer in one piece says of itself; nothing is estimated. What read a prompt and is silent about writing
    (an embedding) wrote nothing."""
    try:
        counts = _counts(body).usage
    except (ValueError, RecursionError):
        return Usage()
    if counts is None:
        return Usage()
    tokens_in, tokens_out = counts.prompt_tokens, counts.completion_tokens
    if tokens_in is None and counts.input_tokens is not None:
        written, read = counts.cache_creation_input_tokens, counts.cache_read_input_tokens
        tokens_in = counts.input_tokens + (written or 0) + (read or 0)
    if tokens_out is None:
        tokens_out = counts.output_tokens
    return Usage(tokens_in, 0 if tokens_out is None and tokens_in is not None else tokens_out)


def usage_of_stream(protocol: StreamProtocol, watcher: Watcher, events: int, body: RequestBody) -> Usage:
    """What was counted upstream, where the stream came to its end; else at least what went by: a token an event.

    `events`: how many went to the client. An unknown protocol's may be anything, and tell nothing.
    """
    counted = Usage(watcher.tokens_in, watcher.tokens_out)
    if protocol.name not in _FRAME_EVENTS or (watcher.complete and None not in counted):
        return counted
    before, after = _FRAME_EVENTS[protocol.name]
    tokens_out = counted.tokens_out
    if tokens_out is None or not watcher.complete:
        tokens_out = max(events - before - (after if watcher.complete else 0), tokens_out or 0)
    return Usage(prompt_tokens(body) if counted.tokens_in is None else counted.tokens_in, tokens_out, estimated=True)


def usage_unanswered(protocol: StreamProtocol, body: RequestBody) -> Usage:
    """Of a request that a replica was sent, and whose client left before anything came back."""
    return Usage(prompt_tokens(body), 0, estimated=True) if protocol.name in _FRAME_EVENTS else Usage()


def prompt_tokens(body: RequestBody) -> int:
    """About how many tokens the model reads. Decodes nothing; pictures and sounds count nothing, being no text."""
    texts = [_text_bytes(body.raw, start, end) for name, start, end in body.members if name in _PROMPT]
    return sum(texts) // BYTES_A_TOKEN


def _text_bytes(raw: bytes, at: int, end: int) -> int:
    """The bytes of this value that are text, less the quotes. In steps of a thousand bytes: taken apart at its quotes,
    a megabyte of code held the event loop for up to 77 ms."""
    text = 0
    while at < end:
        near = min(at + BINARY_BYTES, end)
        last = raw.rfind(b'"', at, near)
        if last >= 0:  # the strings up to there are shorter than binary ones
            text += last - at - raw.count(b'"', at, last)
            at = last + 1
            continue
        stop = raw.find(b'"', near, end)
        stop = end if stop < 0 else stop
        if not _is_binary(raw, at, stop):
            text += stop - at
        at = stop + 1
    return text


def _is_binary(raw: bytes, start: int, stop: int) -> bool:
    begun = start + BINARY_BYTES
    return begun <= stop and raw.find(b" ", start, begun) < 0 and raw[start:stop].isascii()
