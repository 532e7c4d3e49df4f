"""Why there is no stage, in the words that clients of the stream routes know: of a model, and of an upstream's."""

from __future__ import annotations

from proxy.access.keys import Key
from proxy.errors import InvalidRequest, ModelNotFound
from proxy.protocols.event_data import decoded
from proxy.protocols.failure import Failure, answer_error
from proxy.relay import Answer
from proxy.routing.table import RoutingTable

_LONGEST_NAME_SHOWN = 256


def refuse_model(table: RoutingTable, model: str, key: Key | None) -> None:
    """Raise why the holder of `key` gets nothing from `model`; nothing where the reason is another one."""
    shown = model if len(model) <= _LONGEST_NAME_SHOWN else model[:_LONGEST_NAME_SHOWN] + "…"
    try:
        route = table.find(model, key)
    except ModelNotFound as error:
        names = {route.name for route in table.routes}
        usable = [name for name in table.models(key) if name in names]
        message = f"Unknown model: {shown}. Available models: {usable}"
        raise InvalidRequest(message, code=error.code, param="model_container") from None
    if not route.upstream_model:
        message = f"Model {shown} is not configured. Check environment variables."
        raise InvalidRequest(message, param="model_container")
    if not route.replicas:
        message = f"No service configured for model: {shown}"
        raise InvalidRequest(message, param="model_container")


def failure_in(answer: Answer) -> Failure | None:
    """The failure that an answer is, if it is one: told under 200, or by its status, in whatever words it has."""
    if answer.failure is not None or answer.status < 400:
        return answer.failure
    body = answer.body or b""
    told = answer_error(body)
    if told is not None:
        return Failure(answer.status, told.error)
    words = decoded(body) or {}
    said = next((text for name in ("message", "detail") if isinstance(text := words.get(name), str) and text), None)
    return Failure(answer.status, {"message": said or f"The model server answered with status {answer.status}."})
