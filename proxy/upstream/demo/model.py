"""The built-in model: a request in, an answer out, without clock or socket. Here is which endpoint answers what;
each protocol's wording has its own file beside this one."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from proxy.upstream.demo import chat, completions, embeddings, messages, responses
from proxy.upstream.demo.answer import Answer, Refusal, Stamp, Whole, encoded
from proxy.upstream.demo.settings import DemoSettings

Endpoint = Callable[[bytes, DemoSettings, Stamp], Answer]

MODEL = "demo"


def answer(method: str, path: str, body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    """Answer one request; `path` is without its query. Bad input is answered, in the protocol's words."""
    try:
        return _endpoint(method, path)(body, settings, stamp)
    except ValidationError as exc:
        refusal = _mistake(exc)
    except Refusal as exc:
        refusal = exc
    return refusal.anthropic() if path.startswith("/v1/messages") else refusal.openai()


def _endpoint(method: str, path: str) -> Endpoint:
    methods = ENDPOINTS.get(path)
    if methods is None:
        raise Refusal(404, f"The demo model has nothing at {path[:200]}.", code="not_found")
    if method not in methods:
        raise Refusal(405, f"The demo model answers {' and '.join(methods)} here.", code="method_not_allowed")
    return methods[method]


def _mistake(error: ValidationError) -> Refusal:
    """The first thing wrong with a body, without repeating any of it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    message = f"{place}: {first['msg']}" if place else first["msg"]
    return Refusal(400, message, param=place or None, code="invalid_json" if first["type"] == "json_invalid" else None)


def _models(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    model = {"id": MODEL, "object": "model", "created": stamp.created, "owned_by": "penstock"}
    return Whole(200, encoded({"object": "list", "data": [model]}))


def _health(body: bytes, settings: DemoSettings, stamp: Stamp) -> Answer:
    return Whole(200, encoded({"status": "ok"}))


ENDPOINTS: dict[str, dict[str, Endpoint]] = {
    "/v1/chat/completions": {"POST": chat.answered},
    "/v1/completions": {"POST": completions.answered},
    "/v1/responses": {"POST": responses.answered},
    "/v1/messages": {"POST": messages.answered},
    "/v1/messages/count_tokens": {"POST": messages.tokens_counted},
    "/v1/embeddings": {"POST": embeddings.answered},
    "/v1/models": {"GET": _models},
    "/health": {"GET": _health},
}
