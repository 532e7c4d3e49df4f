"""An upstream's own error, however it was spelled: in an event, or in a 200 answer that should have been a stream.

Whether to try again is `routing`'s to decide; how the error is worded for a client, each protocol's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from proxy.protocols.event_data import decoded

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATUS_NAMES = ("status", "status_code", "code")
_ENVELOPE = ("error", "event_id", "sequence_number")
UNEXPLAINED = "The model server reported an error without saying which."


class Failure(Struct, frozen=True):
    """What an upstream said went wrong. Credentials in it are not redacted yet.

    `status`: the HTTP status (400 to 599) it names itself, or None. `error`: its error object.
    """

    status: int | None
    error: Mapping[str, object]

    @property
    def message(self) -> str:
        """A sentence for a person."""
        message = self.error.get("message")
        return message if isinstance(message, str) and message else UNEXPLAINED


def failure_of(event: Mapping[str, object]) -> Failure:
    """The failure an object tells of: in its `error` (an object, or only a sentence), or flat, in its own members."""
    error = event.get("error")
    if isinstance(error, str) and error:
        error = {"message": error, "type": "upstream_error", "param": None, "code": None}
    elif not isinstance(error, dict) or not error:
        flat = {name: value for name, value in event.items() if name not in _ENVELOPE}
        error = flat if flat.pop("type", "error") == "error" else {**flat, "type": event["type"]}
    return Failure(_named_status(error) or _named_status(event), error or {"message": UNEXPLAINED})


def answer_error(body: bytes) -> Failure | None:
    """The failure in a whole JSON answer under status 200: an object with a truthy `error`."""
    answer = decoded(body) if b'"error"' in body else None
    return failure_of(answer) if answer and answer.get("error") else None


def _named_status(error: Mapping[str, object]) -> int | None:
    for name in _STATUS_NAMES:
        value = error.get(name)
        if type(value) is int and 400 <= value <= 599:
            return value
    return None
