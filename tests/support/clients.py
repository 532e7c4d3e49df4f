"""What a client sees of one request, whatever dialect it speaks: the same few facts for HTTP, event streams and each
WebSocket dialect. Which there are is `dialects`'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.raw_client import RawAnswer


@dataclass(slots=True)
class Seen:
    """`status`: the answer's, or the one an error frame names; 200 for a stream that began. `said`: the text of each
    content event. `errors`: the error objects that were told. `done`: the dialect's own good end came. `whole`: the
    answer ended as its framing asks. `headers` are an HTTP answer's. `retry_after_s`: when to come back, where that
    was told. `raw`: events that could not be shown but escaped. `cancelled`: it was stopped on purpose. `over`: the
    dialect's own end came, a good one or a bad one."""

    status: int = 200
    said: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    whole: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    raw: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def error(self) -> dict[str, Any]:
        """The only error."""
        [error] = self.errors
        return error

    @property
    def code(self) -> str | None:
        """The code of the only error."""
        code: str | None = self.error["code"]
        return code

    @property
    def over(self) -> bool:
        return self.done or self.cancelled or bool(self.errors)


Reader = Callable[[Seen, str, Any], None]
"""Notes what one event, of this type, or one frame says; its data is decoded, but for `[DONE]`."""


# ---- readers, one a dialect ----


def read_chat(seen: Seen, type: str, said: Any) -> None:
    """Chat completions' chunks; on a bare socket the errors have a status."""
    if said == "[DONE]":
        seen.done = True
    elif "raw" in said:
        seen.raw.append(said["raw"])
    elif "error" in said:
        seen.errors.append(said["error"])
        seen.status = said.get("status", seen.status)
    elif "message" in said.get("choices", [{}])[0]:  # an answer in one piece
        seen.said += [choice["message"]["content"] for choice in said["choices"]]
    else:
        seen.said += [text for choice in said["choices"] if (text := choice["delta"].get("content"))]


def read_message(seen: Seen, type: str, said: Any) -> None:
    """Anthropic's events."""
    assert type == said["type"]
    if type == "error":
        seen.errors.append(said["error"])
    elif type == "content_block_delta":
        seen.said.append(said["delta"]["text"])
    seen.done |= type == "message_stop"


def read_response(seen: Seen, type: str, said: Any) -> None:
    """Responses' events; on a socket nothing but the data names them, and an error frame has a status."""
    if "raw" in said:
        seen.raw.append(said["raw"])
        return
    assert type in ("", said["type"])
    match said["type"]:
        case "error" if "status" in said:
            seen.status = said["status"]
            seen.errors.append(said["error"])
            retry_after = said.get("headers", {}).get("retry-after")
            seen.retry_after_s = None if retry_after is None else float(retry_after)
        case "error":
            seen.errors.append(said)
        case "response.failed":
            assert said["response"]["status"] == "failed"
            seen.errors.append(said["response"]["error"])
        case "response.output_text.delta":
            seen.said.append(said["delta"])
        case "response.completed":
            seen.done = True


def read_stage(seen: Seen, type: str, said: Any) -> None:
    """The stream routes' events, whose errors are sentences; on a socket the frame names them."""
    if not type:
        type, said = said["event"], said["data"]
    assert said["stage_id"] == "s"
    match type:
        case "chat_completion_chunk":
            read_chat(seen, "", said["chunk"])
        case "error":
            seen.errors.append({"message": said["error"]})
        case "done":
            seen.done = True
        case "cancel":
            seen.cancelled = True
        case _:
            raise AssertionError(type)


def read_mux(seen: Seen, type: str, frame: Any) -> None:
    """Mux's frames, of one request; each is numbered."""
    match frame["type"]:
        case "chat_completion_chunk":
            assert frame["seq"] >= 1
            read_chat(seen, "", frame["data"]["chunk"])
        case "error":
            seen.status = frame["status"]
            seen.errors.append(frame["data"]["error"])
            seen.retry_after_s = frame["retry_after_ms"] / 1000 if "retry_after_ms" in frame else None
        case "done":
            seen.done = True
        case "ready" | "accepted" | "queued" | "goaway":
            pass
        case _:
            raise AssertionError(frame["type"])


# ---- answers over HTTP ----


def read_answer(answer: RawAnswer, read: Reader) -> Seen:
    """An HTTP answer: events, or all of it in one piece."""
    seen = Seen(answer.status, whole=answer.whole, headers=answer.headers)
    if "retry-after" in answer.headers:
        seen.retry_after_s = float(answer.headers["retry-after"])
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        for type, data in events_of(answer.body):
            read(seen, type, data if data == "[DONE]" else json.loads(data))
        return seen
    said = json.loads(answer.body) if answer.body else {}
    if answer.status >= 400:
        seen.errors.append(said["error"] if "error" in said else {"message": said["detail"]})
        return seen
    seen.done = True
    read(seen, "", said.get("chat_completion", said))
    return seen


def events_of(body: bytes) -> list[tuple[str, str]]:
    """Type and data of each event, read as the WHATWG's rules have it, by other means than the gateway's."""
    events: list[tuple[str, str]] = []
    type, data = "", list[str]()
    for line in re.split("\r\n|\r|\n", body.decode("utf-8-sig", "replace")):
        name, _, value = line.partition(":")
        if not line:
            if data:
                events.append((type, "\n".join(data)))
            type, data = "", []
        elif name == "event":
            type = value.removeprefix(" ")
        elif name == "data":
            data.append(value.removeprefix(" "))
    return events
