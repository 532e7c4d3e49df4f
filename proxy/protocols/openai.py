"""OpenAI's chat completions and completions: chunks of choices, then `[DONE]`, which not every server sends.

Once the model has begun to speak, an event is only searched for the members that matter; it is decoded when one of
them may be set. Responses, OpenAI's other protocol, has its own file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from proxy.protocols.event_data import compact, could_be_object, count, decoded, is_done, is_set
from proxy.protocols.failure import Failure, failure_of
from proxy.protocols.protocol import RequestFacts, Sighting, StreamProtocol
from proxy.wire.sse import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.errors import GatewayError
    from proxy.wire.sse import Event

_FINISH = b'"finish_reason"'
_USAGE = b'"usage"'
_ERROR = b'"error"'
_BACKSLASH = 0x5C
_LIST_OF_PROMPTS = re.compile(rb"\[[ \t\n\r]*(?![ \t\n\r0-9-])").match
MOST_LESSONS = 8
"""A stream whose events keep differing around their text (OpenAI's `obfuscation`, a time) is not worth learning."""

_CONTENT = Sighting.CONTENT  # looking a member up on its enum costs more than a search
# What the model says, under all the names servers have for it.
_SPOKEN = (
    "content",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "images",
)
# Where the text of a chunk begins; a chunk differs from the one before it mostly in that text.
_TEXT_BEGINS = (b'"content":"', b'"content": "', b'"text":"', b'"reasoning_content":"', b'"reasoning":"')


class ChatWatcher:
    """Watches chat completions and completions.

    With several choices asked for, every event is decoded, and the answer is complete when each choice seen has
    finished: a server that ignores `n` still completes, and one choice's end does not stand for the others'.
    """

    __slots__ = (
        "_content_seen",
        "_finished",
        "_head",
        "_head_bytes",
        "_lessons_left",
        "_seen",
        "_several",
        "_tail",
        "_tail_bytes",
        "_usage_sighting",
        "complete",
        "failure",
        "pattern",
        "tokens_in",
        "tokens_out",
    )

    def __init__(self, request: RequestFacts) -> None:
        self.complete = False
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.failure: Failure | None = None
        self._content_seen = False
        self._several = several_choices(request)
        self._usage_sighting = Sighting.WITHHELD if asks_for_usage(request) else Sighting.USAGE
        self._seen: frozenset[int] = frozenset()
        self._finished: frozenset[int] = frozenset()
        # The last ordinary event around its text: up to the opening quote, and from the closing one.
        self.pattern: tuple[bytes, bytes] | None = None
        self._head = self._tail = b"none yet"
        self._head_bytes = self._tail_bytes = 1
        self._lessons_left = MOST_LESSONS

    def observe(self, event: Event) -> Sighting:
        data = event.data
        if (
            data[: self._head_bytes] == self._head
            and data[-self._tail_bytes :] == self._tail
            and not event.type
            and data.find(b'"', self._head_bytes, -self._tail_bytes) < 0
        ):  # like the last one but for its text, in which nothing is quoted: half the price of searching it
            return _CONTENT
        if self._content_seen and not self._several and event.type != b"error" and _is_ordinary(data):
            if self._lessons_left:
                self._learn(data)
            return _CONTENT
        return self._look_closely(event)

    def terminal_error(self, error: GatewayError) -> bytes:
        return encode(error_body(error, ""))

    def _learn(self, data: bytes) -> None:
        """Remember what stands around the text of an ordinary event; not for ever, where every event is different."""
        for opening in _TEXT_BEGINS:
            start = data.find(opening)
            if start >= 0:
                start += len(opening)
                end = data.find(b'"', start)
                if data[end - 1] != _BACKSLASH:
                    self._lessons_left -= 1
                    self._head, self._tail = data[:start], data[end:]
                    self._head_bytes, self._tail_bytes = start, len(self._tail)
                    self.pattern = self._head, self._tail
                return

    def _look_closely(self, event: Event) -> Sighting:
        if not could_be_object(event.data):
            return self._done() if is_done(event.data) else Sighting.MALFORMED
        chunk = decoded(event.data)
        if chunk is None:
            return Sighting.MALFORMED
        if chunk.get("error") or event.type == b"error":
            self.failure = self.failure or failure_of(chunk)
            return Sighting.ERROR
        return self._chunk(chunk)

    def _done(self) -> Sighting:
        self.complete = True
        return Sighting.END

    def _chunk(self, chunk: Mapping[str, object]) -> Sighting:
        usage = chunk.get("usage")
        self._count(usage)
        listed = chunk.get("choices")
        choices = [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []
        for choice in choices:
            self._choice(choice)
        if usage and not choices:
            return self._usage_sighting
        return _CONTENT if self._content_seen else Sighting.PREAMBLE

    def _choice(self, choice: Mapping[str, object]) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        finished = bool(choice.get("finish_reason"))
        self._seen |= {index}
        if finished:
            self._finished |= {index}
        self.complete = bool(self._finished) and (not self._several or self._seen == self._finished)
        self._content_seen = self._content_seen or finished or _speaks(choice)

    def _count(self, usage: object) -> None:
        self.tokens_in = count(self.tokens_in, usage, "prompt_tokens")
        self.tokens_out = count(self.tokens_out, usage, "completion_tokens")


def _is_ordinary(data: bytes) -> bool:
    """Whether none of the members that matter can be set in this object; False asks for a closer look."""
    return (
        data[:1] == b"{"
        and data[-1:] == b"}"
        and ((at := data.find(_ERROR)) < 0 or not is_set(data, _ERROR, at))
        and ((at := data.find(_USAGE)) < 0 or not is_set(data, _USAGE, at))
        and ((at := data.find(_FINISH)) < 0 or not is_set(data, _FINISH, at))
    )


def _speaks(choice: Mapping[str, object]) -> bool:
    delta = choice.get("delta")
    return bool(choice.get("text")) or (isinstance(delta, dict) and any(delta.get(name) for name in _SPOKEN))


def several_choices(request: RequestFacts) -> bool:
    """Whether one answer has several choices: `n`, or several prompts."""
    n = request.value("n")
    if isinstance(n, int) and n > 1:
        return True
    # A list of numbers is one prompt in tokens; of texts or of such lists, one choice each. Only these are decoded: a
    # megabyte of tokens would take 17 ms.
    if _LIST_OF_PROMPTS(request.opening("prompt")) is None:
        return False
    prompt = request.value("prompt")
    return isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)


def asks_for_usage(request: RequestFacts) -> bool:
    """Whether the gateway asks for the usage chunk of this stream on its own account: the client could and did not.

    Options that make no sense are the client's own: they go on untouched, for the server to complain about.
    """
    if not request.stream:
        return False
    options = request.value("stream_options")
    if isinstance(options, dict):
        options = options.get("include_usage")
        return options is None or options is False
    return options is None


def error_body(error: GatewayError, request_id: str) -> bytes:
    """OpenAI's error answer; it has no place for the request's id."""
    told = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return compact({"error": told})


def failure_body(failure: Failure, request_id: str) -> bytes:
    """The upstream's error object as OpenAI's error answer."""
    return compact({"error": failure.error})


OPENAI = StreamProtocol("openai", b": ping\n", ChatWatcher, error_body, failure_body, asks_for_usage)
