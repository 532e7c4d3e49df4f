"""Messages of the built-in model, Anthropic's endpoint: the request in, a message or its events out; token counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from proxy.upstream.demo.answer import Answer, Beat, Stamp, Streamed, Whole, encoded, event, paced
from proxy.upstream.demo.conversation import Conversation, JsonObject, Shape, Tool, ToolResult, counted, offered
from proxy.upstream.demo.reply import Reply, composed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.upstream.demo.calls import ToolCall
    from proxy.upstream.demo.settings import DemoSettings

ASIDE = "<system-reminder>"
"""Coding agents put notes to the model between the user's words; these are not what the user said."""


class Block(Shape):
    """A content block of any type; only text, and tools' uses and results, are minded."""

    type: str
    text: str | None = None
    id: str = ""
    name: str | None = None
    tool_use_id: str = ""
    content: Any = None

    @property
    def result(self) -> str:
        """What a `tool_result` holds as text."""
        parts = self.content if isinstance(self.content, list) else [{"text": self.content}]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))


class Message(Shape):
    role: str
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        return [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def said(self) -> str:
        """The last text in it that is no aside; empty when there is none."""
        texts = [block.text for block in self.blocks if block.text and not block.text.startswith(ASIDE)]
        return texts[-1] if texts else ""


class OfferedTool(Shape):
    name: str = ""
    input_schema: JsonObject | None = None


class ToolChoice(Shape):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Shape):
    """The members of a count request that the built-in model minds; a messages request has them too."""

    model: str = "demo"
    messages: list[Message] = Field(min_length=1)
    system: str | list[Block] | None = None
    tools: list[OfferedTool] | None = None

    @property
    def input_tokens(self) -> int:
        system = [self.system] if isinstance(self.system, str) else [block.text or "" for block in self.system or ()]
        said = [block.text or block.result for message in self.messages for block in message.blocks]
        return 4 * len(self.messages) + sum(map(counted, [*system, *said]))


class MessagesRequest(CountRequest):
    """The members of a messages request that the built-in model minds."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    tool_choice: ToolChoice | None = None


def tokens_counted(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer `POST /v1/messages/count_tokens`; raises pydantic's ValidationError for a body of another shape."""
    return Whole(200, encoded({"input_tokens": CountRequest.model_validate_json(body).input_tokens}))


def answered(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer `POST /v1/messages`; raises Refusal, or pydantic's ValidationError for a body of another shape."""
    request = MessagesRequest.model_validate_json(body)
    conversation = conversation_of(request)
    reply = composed(conversation, settings)
    if request.stream:
        return Streamed(paced(_beats(request, reply, conversation.input_tokens, stamp), settings))
    blocks = [_call_block(at, call, stamp, call.values) for at, call in enumerate(reply.calls)]
    message = _message(request, blocks or [{"type": "text", "text": reply.text}], conversation.input_tokens, stamp)
    message["stop_reason"] = _stop_reason(reply)
    message["usage"]["output_tokens"] = reply.output_tokens
    return Whole(200, encoded(message), settings.duration_s(reply.output_tokens))


def conversation_of(request: MessagesRequest) -> Conversation:
    spoken = [at for at, message in enumerate(request.messages) if message.role == "user" and message.said]
    choice = request.tool_choice or ToolChoice()
    tools = tuple(Tool(tool.name, tool.input_schema or {}) for tool in request.tools or () if tool.name)
    kind = {"any": "required", "tool": "named"}.get(choice.type, choice.type)
    tools, must_call = offered(tools, kind, choice.name)
    return Conversation(
        prompt=request.messages[spoken[-1]].said if spoken else "",
        tools=tools,
        must_call=must_call,
        parallel_calls=not choice.disable_parallel_tool_use,
        results=_results(request.messages[spoken[-1] :] if spoken else request.messages, request.messages),
        max_tokens=request.max_tokens,
        stops=tuple(request.stop_sequences or ()),
        input_tokens=request.input_tokens,
    )


def _results(since: list[Message], messages: list[Message]) -> tuple[ToolResult, ...]:
    used = [block for message in messages for block in message.blocks if block.type == "tool_use"]
    names = {block.id: block.name or "tool" for block in used}
    results = [block for message in since for block in message.blocks if block.type == "tool_result"]
    return tuple(ToolResult(names.get(block.tool_use_id, "tool"), block.result) for block in results)


def _stop_reason(reply: Reply) -> str:
    return "tool_use" if reply.calls else "max_tokens" if reply.cut else "end_turn"


def _message(request: MessagesRequest, content: list[JsonObject], input_tokens: int, stamp: Stamp) -> JsonObject:
    return {
        "id": f"msg_{stamp.nonce}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": 0},
    }


def _call_block(at: int, call: ToolCall, stamp: Stamp, values: JsonObject) -> JsonObject:
    return {"type": "tool_use", "id": f"toolu_{stamp.nonce[:22]}{at:02}", "name": call.name, "input": values}


def _event(kind: str, *, carries_token: bool = False, **members: Any) -> Beat:
    return carries_token, event(encoded({"type": kind, **members}), kind)


def _beats(request: MessagesRequest, reply: Reply, input_tokens: int, stamp: Stamp) -> Iterator[Beat]:
    """Every event from `message_start` to `message_stop`."""
    yield _event("message_start", message=_message(request, [], input_tokens, stamp))
    if not reply.calls:
        yield from _block_beats(0, {"type": "text", "text": ""}, "text_delta", "text", reply.tokens)
    for at, call in enumerate(reply.calls):
        block = _call_block(at, call, stamp, {})
        yield from _block_beats(at, block, "input_json_delta", "partial_json", call.fragments)
    ended = {"stop_reason": _stop_reason(reply), "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage={"output_tokens": reply.output_tokens})
    yield _event("message_stop")


def _block_beats(at: int, block: JsonObject, kind: str, member: str, pieces: tuple[str, ...]) -> Iterator[Beat]:
    yield _event("content_block_start", index=at, content_block=block)
    if at == 0:
        yield _event("ping")
    for piece in pieces:
        delta = {"type": kind, member: piece}
        yield _event("content_block_delta", carries_token=True, index=at, delta=delta)
    yield _event("content_block_stop", index=at)
