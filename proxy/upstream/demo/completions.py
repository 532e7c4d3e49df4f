"""Text completions of the built-in model, OpenAI's older endpoint: prompts in, `text_completion` out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from proxy.upstream.demo.answer import Answer, Stamp, Streamed, Whole, encoded, paced
from proxy.upstream.demo.chat import StreamOptions, ending, finish_reason, taking_turns, usage_of
from proxy.upstream.demo.conversation import Conversation, JsonObject, Shape, counted
from proxy.upstream.demo.reply import Reply, composed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.upstream.demo.answer import Beat
    from proxy.upstream.demo.settings import DemoSettings


class CompletionRequest(Shape):
    """The members of a completion request that the built-in model minds."""

    model: str = "demo"
    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    echo: bool | None = None


def answered(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer `POST /v1/completions`; raises pydantic's ValidationError for a body of another shape."""
    request = CompletionRequest.model_validate_json(body)
    prompts = texts_of(request.prompt)
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    replies = [
        composed(Conversation(prompt, max_tokens=request.max_tokens, stops=stops), settings, index)
        for prompt in prompts
        for index in range(request.n or 1)
    ]
    echoes = [prompt if request.echo else "" for prompt in prompts for _ in range(request.n or 1)]
    usage = usage_of(sum(map(counted, prompts)), replies)
    if request.stream:
        include_usage = request.stream_options is not None and request.stream_options.include_usage
        beats = _beats(_shape(request.model, stamp), replies, echoes, usage if include_usage else None)
        return Streamed(paced(beats, settings))
    choices = [
        {"index": index, "text": echo + reply.text, "logprobs": None, "finish_reason": finish_reason(reply)}
        for index, (reply, echo) in enumerate(zip(replies, echoes, strict=True))
    ]
    delay_s = settings.duration_s(max(reply.output_tokens for reply in replies))
    return Whole(200, encoded({**_shape(request.model, stamp), "choices": choices, "usage": usage}), delay_s)


def texts_of(given: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    """What a `prompt` or an `input` holds, as texts; token ids, which mean nothing here, stand for themselves."""
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    if ids:
        return [" ".join(map(str, ids))]
    return [one if isinstance(one, str) else " ".join(map(str, one)) for one in given if not isinstance(one, int)]


def _shape(model: str, stamp: Stamp) -> JsonObject:
    return {"id": f"cmpl-{stamp.nonce}", "object": "text_completion", "created": stamp.created, "model": model}


def _beats(shape: JsonObject, replies: list[Reply], echoes: list[str], usage: JsonObject | None) -> Iterator[Beat]:
    opening = encoded(shape)[:-1]
    choices = enumerate(zip(replies, echoes, strict=True))
    yield from taking_turns([_choice_beats(index, reply, echo, opening) for index, (reply, echo) in choices])
    yield from ending(opening, usage)


def _choice_beats(index: int, reply: Reply, echo: str, shape: bytes) -> Iterator[Beat]:
    """The chunks of one choice: what is echoed, a chunk for each token, its end."""
    opening = b'data: %b,"choices":[{"index":%d,"text":' % (shape, index)
    rest = b',"logprobs":null,"finish_reason":null}]}\n\n'
    if echo:
        yield False, opening + encoded(echo) + rest
    for token in reply.tokens:
        yield True, opening + encoded(token) + rest
    yield False, b'%b"","logprobs":null,"finish_reason":"%b"}]}\n\n' % (opening, finish_reason(reply).encode())
