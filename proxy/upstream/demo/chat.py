"""Chat completions of the built-in model: OpenAI's request in, `chat.completion` or its chunks out."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from proxy.upstream.demo.answer import DONE, Answer, Stamp, Streamed, Whole, encoded, event, paced
from proxy.upstream.demo.conversation import (
    Conversation,
    JsonObject,
    Part,
    Shape,
    Tool,
    ToolResult,
    counted,
    offered,
    text_of,
    wanted_shape,
)
from proxy.upstream.demo.reply import Reply, composed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.upstream.demo.answer import Beat
    from proxy.upstream.demo.settings import DemoSettings


class Named(Shape):
    name: str = ""


class Call(Shape):
    id: str = ""
    function: Named = Named()


class Message(Shape):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        return text_of(self.content)


class Function(Shape):
    name: str
    parameters: JsonObject | None = None


class OfferedTool(Shape):
    function: Function | None = None


class NamedChoice(Shape):
    function: Named


class JsonShape(Shape):
    json_schema: JsonObject = Field(default={}, alias="schema")


class ResponseFormat(Shape):
    type: str = "text"
    json_schema: JsonShape = JsonShape()


class StreamOptions(Shape):
    include_usage: bool | None = None


class ChatRequest(Shape):
    """The members of a chat completion request that the built-in model minds."""

    model: str = "demo"
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


def answered(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer `POST /v1/chat/completions`; raises Refusal, or pydantic's ValidationError for a body of another shape."""
    request = ChatRequest.model_validate_json(body)
    conversation = conversation_of(request)
    replies = [composed(conversation, settings, index) for index in range(request.n or 1)]
    usage = usage_of(conversation.input_tokens, replies)
    if request.stream:
        include_usage = request.stream_options is not None and request.stream_options.include_usage
        return Streamed(paced(_beats(request.model, replies, stamp, usage if include_usage else None), settings))
    delay_s = settings.duration_s(max(reply.output_tokens for reply in replies))
    choices = [_choice(index, reply, stamp) for index, reply in enumerate(replies)]
    shape = _shape("chat.completion", request.model, stamp)
    return Whole(200, encoded({**shape, "choices": choices, "usage": usage}), delay_s)


def conversation_of(request: ChatRequest) -> Conversation:
    spoken = [at for at, message in enumerate(request.messages) if message.role == "user"]
    tools = tuple(Tool(t.function.name, t.function.parameters or {}) for t in request.tools or () if t.function)
    choice = request.tool_choice or "auto"
    if isinstance(choice, NamedChoice):
        tools, must_call = offered(tools, "named", choice.function.name)
    else:
        tools, must_call = offered(tools, choice)
    stop = request.stop or []
    shape = request.response_format or ResponseFormat()
    return Conversation(
        prompt=request.messages[spoken[-1] if spoken else -1].text,
        tools=tools,
        must_call=must_call,
        parallel_calls=request.parallel_tool_calls is not False,
        results=_results(request.messages[spoken[-1] :] if spoken else request.messages),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        stops=(stop,) if isinstance(stop, str) else tuple(stop),
        json_schema=wanted_shape(shape.type, shape.json_schema.json_schema),
        input_tokens=sum(4 + counted(message.text) for message in request.messages),
    )


def _results(messages: list[Message]) -> tuple[ToolResult, ...]:
    """The tools' answers among these messages, under the names they were called by."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    answers = [message for message in messages if message.role == "tool"]
    return tuple(ToolResult(names.get(answer.tool_call_id or "", "tool"), answer.text) for answer in answers)


def _shape(kind: str, model: str, stamp: Stamp) -> JsonObject:
    return {"id": f"chatcmpl-{stamp.nonce}", "object": kind, "created": stamp.created, "model": model}


def usage_of(given: int, replies: list[Reply]) -> JsonObject:
    output = sum(reply.output_tokens for reply in replies)
    return {"prompt_tokens": given, "completion_tokens": output, "total_tokens": given + output}


def taking_turns(choices: list[Iterator[Beat]]) -> Iterator[Beat]:
    """Interleave the chunks of several choices, written side by side: one token of each in the time of one."""
    for turn in zip_longest(*choices):
        timed = False
        for carries_token, piece in filter(None, turn):
            yield carries_token and not timed, piece
            timed = timed or carries_token


def ending(shape: bytes, usage: JsonObject | None) -> Iterator[Beat]:
    """The usage chunk, where it was asked for, and the end; `shape` is a chunk's head, without its last brace."""
    if usage is not None:
        yield False, event(shape + b',"choices":[],"usage":' + encoded(usage) + b"}")
    yield False, DONE


def _call_id(stamp: Stamp, index: int, at: int) -> str:
    return f"call_{stamp.nonce[:20]}{index:02}{at:02}"


def finish_reason(reply: Reply) -> str:
    return "tool_calls" if reply.calls else "length" if reply.cut else "stop"


def _choice(index: int, reply: Reply, stamp: Stamp) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": None if reply.calls else reply.text, "refusal": None}
    if reply.calls:
        message["tool_calls"] = [
            {
                "id": _call_id(stamp, index, at),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for at, call in enumerate(reply.calls)
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason(reply)}


def _beats(model: str, replies: list[Reply], stamp: Stamp, usage: JsonObject | None) -> Iterator[Beat]:
    """The chunks of the whole stream; the choices of a request that wants several take turns."""
    shape = encoded(_shape("chat.completion.chunk", model, stamp))[:-1]
    yield from taking_turns([_choice_beats(index, reply, shape, stamp) for index, reply in enumerate(replies)])
    yield from ending(shape, usage)


def _choice_beats(index: int, reply: Reply, shape: bytes, stamp: Stamp) -> Iterator[Beat]:
    """The chunks of one choice: its role, a chunk for each token, its end."""
    opening = b'data: %b,"choices":[{"index":%d,"delta":' % (shape, index)
    rest = b',"logprobs":null,"finish_reason":null}]}\n\n'
    yield False, opening + encoded({"role": "assistant", "content": None if reply.calls else ""}) + rest
    for token in reply.tokens:
        yield True, b'%b{"content":%b}%b' % (opening, encoded(token), rest)
    for delta in _call_deltas(index, reply, stamp):
        yield True, opening + encoded({"tool_calls": [delta]}) + rest
    yield False, b'%b{},"logprobs":null,"finish_reason":"%b"}]}\n\n' % (opening, finish_reason(reply).encode())


def _call_deltas(index: int, reply: Reply, stamp: Stamp) -> Iterator[dict[str, Any]]:
    for at, call in enumerate(reply.calls):
        named = {"name": call.name, "arguments": ""}
        yield {"index": at, "id": _call_id(stamp, index, at), "type": "function", "function": named}
        for fragment in call.fragments:
            yield {"index": at, "function": {"arguments": fragment}}
