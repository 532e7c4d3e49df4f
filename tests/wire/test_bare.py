"""The bare dialect's bytes: what a message means, how an error reads."""

from __future__ import annotations

import json

import pytest

from proxy.errors import ModelNotFound, Unavailable
from proxy.wire.bare import CANCELLED, DONE, error_payload, failure_payload, is_cancel
from proxy.wire.frames import text_payload


@pytest.mark.parametrize(
    "message", ['{"type":"cancel"}', ' {"type" : "cancel"}\n', '{"rid":1,"type":"cancel"}', CANCELLED.decode()]
)
def test_a_cancel_is_one_however_it_is_spaced(message: str) -> None:
    assert is_cancel(message)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "cancel",
        '"cancel"',
        '["type","cancel"]',
        '{"type":"cancelled"}',
        '{"type":["cancel"]}',
        '{"type":"cancel"',
        '{"type":"x","type2":"cancel"}',
        '{"model":"m","type":"cancel"}',
        '{"model":"m","messages":[{"role":"user","content":"{\\"type\\":\\"cancel\\"}"}]}',
        '{"type":"cancel","padding":"' + "x" * 300 + '"}',
        "[" * 200 + '"cancel"',
        '{"type":"cancel"}{}',
    ],
)
def test_anything_else_is_none(message: str) -> None:
    assert not is_cancel(message)


def test_our_error_has_openais_members_and_a_status() -> None:
    payload = error_payload(ModelNotFound("no \u2028 such\nmodel", param="model"))
    assert json.loads(payload) == {
        "error": {
            "message": "no \u2028 such\nmodel",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        },
        "status": 404,
    }
    assert payload.isascii()
    assert text_payload(payload) is payload


def test_the_status_is_the_errors_own() -> None:
    assert json.loads(error_payload(Unavailable("busy", code="draining")))["status"] == 503


@pytest.mark.parametrize("error", [{}, {"message": "über", "n": [1.5, None]}, {"status": 1}])
def test_an_upstreams_error_keeps_its_members(error: dict[str, object]) -> None:
    assert json.loads(failure_payload(error, 429)) == {"error": error, "status": 429}


def test_done_is_no_json_and_cancelled_is() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(DONE)
    assert json.loads(CANCELLED) == {"type": "cancel"}
