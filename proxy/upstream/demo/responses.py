"""Responses of the built-in model, OpenAI's newer endpoint: the response object, or its events one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from proxy.upstream.demo.answer import Answer, Stamp, Streamed, Whole, encoded, paced
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
from proxy.upstream.demo.reply import composed
from proxy.upstream.demo.responses_events import ResponseTeller

if TYPE_CHECKING:
    from proxy.upstream.demo.settings import DemoSettings


class Item(Shape):
    """An input item of any type; only messages and function calls with their outputs are minded."""

    type: str = "message"
    role: str = ""
    content: str | list[Part] | None = None
    call_id: str = ""
    name: str | None = None
    output: str | list[Part] | None = None

    @property
    def text(self) -> str:
        return text_of(self.output if self.type == "function_call_output" else self.content)


class NamedChoice(Shape):
    name: str = ""


class Format(Shape):
    type: str = "text"
    json_schema: JsonObject | None = Field(default=None, alias="schema")


class TextOptions(Shape):
    format: Format | None = None


class ResponsesRequest(Shape):
    """The members of a Responses request that the built-in model minds, or hands back."""

    model: str = "demo"
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    tools: list[JsonObject] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: JsonObject | None = None
    temperature: float | None = None
    top_p: float | None = None


def answered(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer `POST /v1/responses`; raises Refusal, or pydantic's ValidationError for a body of another shape."""
    request = ResponsesRequest.model_validate_json(body)
    conversation = conversation_of(request)
    reply = composed(conversation, settings)
    teller = ResponseTeller(_facts(request), conversation.input_tokens, reply, stamp)
    if request.stream:
        return Streamed(paced(teller.beats(), settings))
    return Whole(200, encoded(teller.ended()), settings.duration_s(reply.output_tokens))


def conversation_of(request: ResponsesRequest) -> Conversation:
    items = [Item(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    spoken = [at for at, item in enumerate(items) if item.type == "message" and item.role == "user"]
    functions = [tool for tool in request.tools or () if tool.get("type") == "function" and tool.get("name")]
    tools = tuple(Tool(str(tool["name"]), tool.get("parameters") or {}) for tool in functions)
    choice = request.tool_choice or "auto"
    shape = (request.text and request.text.format) or Format()
    if isinstance(choice, NamedChoice):
        tools, must_call = offered(tools, "named", choice.name)
    else:
        tools, must_call = offered(tools, choice)
    return Conversation(
        prompt=items[spoken[-1] if spoken else -1].text,
        tools=tools,
        must_call=must_call,
        parallel_calls=request.parallel_tool_calls is not False,
        results=_results(items[spoken[-1] :] if spoken else items),
        max_tokens=request.max_output_tokens,
        json_schema=wanted_shape(shape.type, shape.json_schema),
        input_tokens=counted(request.instructions or "") + sum(4 + counted(item.text) for item in items),
    )


def _results(items: list[Item]) -> tuple[ToolResult, ...]:
    names = {item.call_id: item.name or "tool" for item in items if item.type == "function_call"}
    outputs = [item for item in items if item.type == "function_call_output"]
    return tuple(ToolResult(names.get(output.call_id, "tool"), output.text) for output in outputs)


def _facts(request: ResponsesRequest) -> JsonObject:
    """The request's members that a response repeats."""
    choice = request.tool_choice or "auto"
    nothing_said = {"description": None, "parameters": None, "strict": None}
    return {
        "model": request.model,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "tool_choice": choice if isinstance(choice, str) else {"type": "function", "name": choice.name},
        "tools": [{**nothing_said, **tool} if tool.get("type") == "function" else tool for tool in request.tools or ()],
        "metadata": request.metadata or {},
    }
