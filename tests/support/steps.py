"""A fault as the steps a model server takes: `("head", "one", "half an event", "reset")`.

A word is looked up here, in the protocol's own bytes; bytes are sent as they are, each piece in a write of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.model_words import ITS_OWN, Words
from tests.support.upstream import LAST_CHUNK, OK_EVENTS, OK_EVENTS_UNTIL_CLOSE, Script, answering, chunk, event, saying

Step = str | bytes
ENDS = {"close": "end", "reset": "reset", "stall": "stall"}
"""The last step of a connection; without one, the next request on it is answered alike."""


def play(words: Words, steps: tuple[Step, ...]) -> Script:
    """The script of these steps, taken once a request has come."""
    *first, last = steps
    if last in ENDS:
        return saying(*pieces(words, first), end=ENDS[str(last)])
    return answering(*pieces(words, steps))


def pieces(words: Words, steps: Sequence[Step]) -> list[bytes]:
    """What is sent in these steps."""
    known = _steps(words)
    return [known[step] if isinstance(step, str) else step for step in steps]


def _steps(words: Words) -> dict[str, bytes]:
    one, umlaut = words.content("one"), words.content("zwölf")
    inside = umlaut.index("ö".encode()) + 1
    return {
        "head": OK_EVENTS,
        "head until close": OK_EVENTS_UNTIL_CLOSE,
        "preamble": chunk(words.preamble),
        "unframed preamble": words.preamble,
        "one": chunk(one),
        "unframed one": one,
        "two": chunk(words.content("two")),
        "half an event": chunk(one[:20]),
        "half a chunk": chunk(one)[:20],
        "half a character": chunk(umlaut[:inside]),
        "a comment": chunk(b": ping\n\n"),
        "no JSON": chunk(event(b"no JSON") + event(b"[half")),
        "an error": chunk(words.error(ITS_OWN)),
        "an error 503": chunk(words.error({"message": "m", "type": "t", "param": None, "code": 503})),
        "the end": chunk(words.end),
        "last chunk": LAST_CHUNK,
        "bad chunk size": b"zz\r\n",
        "extra bytes": b"%x\r\n%bXX" % (len(one), one),
    }
