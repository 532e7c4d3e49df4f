"""How many tokens a request took: as the upstream counted them, else estimated from what went by.

Finding the counts in a stream's events is `protocols`'; asking for them, dispatch's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.protocols.event_data import count, decoded

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
# The names of OpenAI's older endpoints; those of its newer one, and Anthropic's, whose prompt is all three.
_READ: Final = (("prompt_tokens",), ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"))
_WRITTEN: Final = (("completion_tokens",), ("output_tokens",))

_decoder: Final = json.JSONDecoder()


class Usage(NamedTuple):
    """Tokens read and written, None where nobody knows; `estimated` if either is."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    estimated: bool = False


def usage_of_answer(body: bytes) -> Usage:
    """What an answer in one piece says of itself; nothing is estimated. What read a prompt and is silent about writing
    (an embedding) wrote nothing."""
    usage = _reported(body)
    tokens_in, tokens_out = _first(usage, _READ), _first(usage, _WRITTEN)
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
    prompt = [body.raw[start:end] for name, start, end in body.members if name in _PROMPT]
    strings = [string for value in prompt for string in value.split(b'"')]
    return sum(len(string) for string in strings if not _is_binary(string)) // BYTES_A_TOKEN


def _is_binary(string: bytes) -> bool:
    return len(string) >= BINARY_BYTES and b" " not in string[:BINARY_BYTES] and string.isascii()


def _reported(body: bytes) -> object:
    """The `usage` of a JSON object, or None. Most servers write it last: then nothing else is decoded, which with an
    embedding's numbers is a hundred times as much."""
    at = body.rfind(b'"usage"')
    if at < 0:
        return None
    name, _, rest = body[at:].decode("utf-8", "replace").partition(":")
    try:
        value, end = _decoder.raw_decode(rest, len(rest) - len(rest.lstrip()))
    except (ValueError, RecursionError):
        end = 0
    if end and name.rstrip() == '"usage"' and rest[end:].strip() == "}":  # one brace: nothing else was open
        return value
    return (decoded(body) or {}).get("usage")


def _first(usage: object, spellings: tuple[tuple[str, ...], ...]) -> int | None:
    found = (count(None, usage, *names) for names in spellings)
    return next((number for number in found if number is not None), None)
