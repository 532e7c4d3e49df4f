"""How the built-in model's Responses look on the wire: the response object, its output items, and the events
that tell of them. What was asked is read in `responses`."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from proxy.upstream.demo.answer import Beat, Stamp, encoded, event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.upstream.demo.calls import ToolCall
    from proxy.upstream.demo.conversation import JsonObject
    from proxy.upstream.demo.reply import Reply


class ResponseTeller:
    """Tells one reply as a response. `facts` are what the request settles in it (model, tools, …)."""

    def __init__(self, facts: JsonObject, input_tokens: int, reply: Reply, stamp: Stamp) -> None:
        self._facts = facts
        self._input_tokens = input_tokens
        self._reply = reply
        self._stamp = stamp
        self._numbers = count()

    def ended(self) -> JsonObject:
        """The response object, complete, or incomplete because of `max_output_tokens`."""
        calls = [self._call_item(at, call, "completed") for at, call in enumerate(self._reply.calls)]
        items = calls or [self._message_item("incomplete" if self._reply.cut else "completed", [self._text_part()])]
        given, written = self._input_tokens, self._reply.output_tokens
        usage = {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + written,
        }
        return self._response("incomplete" if self._reply.cut else "completed", items, usage)

    def beats(self) -> Iterator[Beat]:
        """Every event from `response.created` to `response.completed` or `response.incomplete`; only once."""
        started = self._response("in_progress", [], None)
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)
        for at, call in enumerate(self._reply.calls):
            yield from self._call_beats(at, call)
        if not self._reply.calls:
            yield from self._message_beats()
        ended = self.ended()
        yield self._event(f"response.{ended['status']}", response=ended)

    def _event(self, kind: str, carries_token: bool = False, /, **members: Any) -> Beat:
        data = {"type": kind, "sequence_number": next(self._numbers), **members}
        return carries_token, event(encoded(data), kind)

    def _response(self, status: str, output: list[JsonObject], usage: JsonObject | None) -> JsonObject:
        return {
            "id": f"resp_{self._stamp.nonce}",
            "object": "response",
            "created_at": self._stamp.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            **self._facts,
            "output": output,
            "usage": usage,
        }

    def _message_item(self, status: str, content: list[JsonObject]) -> JsonObject:
        place = {"id": f"msg_{self._stamp.nonce}", "type": "message", "role": "assistant"}
        return {**place, "status": status, "content": content}

    def _text_part(self) -> JsonObject:
        return {"type": "output_text", "text": self._reply.text, "annotations": [], "logprobs": []}

    def _message_beats(self) -> Iterator[Beat]:
        place = {"item_id": f"msg_{self._stamp.nonce}", "output_index": 0, "content_index": 0}
        empty = {**self._text_part(), "text": ""}
        yield self._event("response.output_item.added", output_index=0, item=self._message_item("in_progress", []))
        yield self._event("response.content_part.added", **place, part=empty)
        for token in self._reply.tokens:
            yield self._event("response.output_text.delta", True, **place, delta=token, logprobs=[])
        yield self._event("response.output_text.done", **place, text=self._reply.text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=self._text_part())
        item = self._message_item("incomplete" if self._reply.cut else "completed", [self._text_part()])
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _call_item(self, at: int, call: ToolCall, status: str) -> JsonObject:
        mark = f"{self._stamp.nonce}{at:02}"
        place = {"id": f"fc_{mark}", "type": "function_call", "call_id": f"call_{mark}", "name": call.name}
        return {**place, "arguments": call.arguments if status == "completed" else "", "status": status}

    def _call_beats(self, at: int, call: ToolCall) -> Iterator[Beat]:
        started = self._call_item(at, call, "in_progress")
        place = {"item_id": started["id"], "output_index": at}
        yield self._event("response.output_item.added", output_index=at, item=started)
        for part in call.fragments:
            yield self._event("response.function_call_arguments.delta", True, **place, delta=part)
        yield self._event("response.function_call_arguments.done", **place, arguments=call.arguments)
        item = self._call_item(at, call, "completed")
        yield self._event("response.output_item.done", output_index=at, item=item)
