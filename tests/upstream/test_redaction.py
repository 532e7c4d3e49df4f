"""A replica's credentials do not stand in what it says when it fails."""

from __future__ import annotations

import pytest

from proxy.protocols.failure import Failure
from proxy.upstream.redaction import Redaction
from proxy.wire.sse import Parser

OWN = (
    ("Authorization", "Bearer sk-canary-1"),
    ("x-api-key", "key4"),
    ("X-Tenant-Secret", 'tricky"\\value'),
    ("X-Team", "red"),
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"", b""),
        (b'{"error":{"message":"no such model"}}', b'{"error":{"message":"no such model"}}'),
        (b"Incorrect key: sk-canary-1.", b"Incorrect key: ***."),
        (b"you sent 'Bearer sk-canary-1', sk-canary-1", b"you sent 'Bearer ***', ***"),
        (b"key4key4 and red", b"****** and red"),
        (b'tricky"\\value', b"***"),
        (b'{"saw":"tricky\\"\\\\value"}', b'{"saw":"***"}'),
        (b"\xff sk-canary-1 \xff", b"\xff *** \xff"),
        (b"sk-canary-", b"sk-canary-"),
    ],
)
def test_each_occurrence_is_replaced_and_nothing_else(said: bytes, shown: bytes) -> None:
    assert Redaction(OWN).data(said) == shown


def test_a_credential_within_another_does_not_save_the_rest_of_it() -> None:
    redaction = Redaction((("api-key", "sk-1234"), ("x-api-key", "sk-1234-long")))
    assert redaction.text("sk-1234-long sk-1234") == "*** ***"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("authorization", "Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("AUTHORIZATION", "sk-bare-token", "sk-bare-token"),
        ("Api-Key", "has a blank", "has a blank"),
        ("X-Anything", "12345678", "12345678"),
    ],
)
def test_every_configured_value_is_a_secret(name: str, value: str, secret: str) -> None:
    assert Redaction(((name, value),)).text(f"<{secret}>") == "<***>"


@pytest.mark.parametrize(
    ("name", "value"), [("Authorization", "Bearer x"), ("x-api-key", ""), ("X-Team", "research"[:7])]
)
def test_a_placeholder_too_short_to_be_one_is_not(name: str, value: str) -> None:
    text = "Bearer x: max_tokens is more than researc allows"
    assert Redaction(((name, value),)).text(text) == text


def test_a_failure_is_redacted_in_all_its_depth() -> None:
    failure = Failure(401, {"message": "sk-canary-1", "code": 7, "details": [{"sk-canary-1": ["sk-canary-1", None]}]})
    assert Redaction(OWN).failure(failure) == Failure(
        401, {"message": "***", "code": 7, "details": [{"***": ["***", None]}]}
    )


def test_an_event_is_redacted_in_all_its_forms() -> None:
    [event] = Parser(1000).feed(b": a comment\nid: 7\nevent: error\ndata: sk-canary-1\n\n")
    redacted = Redaction(OWN).event(event)
    assert redacted.wire == b"id: 7\nevent: error\ndata: ***\n\n"
    assert (redacted.data, redacted.type, redacted.id) == (b"***", b"error", b"7")
    assert b"canary" not in redacted.raw


def test_headers_are_redacted() -> None:
    said = (("WWW-Authenticate", 'Bearer realm="sk-canary-1"'), ("Retry-After", "3"))
    assert Redaction(OWN).headers(said) == (("WWW-Authenticate", 'Bearer realm="***"'), ("Retry-After", "3"))


def test_a_replica_without_credentials_is_quoted_as_it_is() -> None:
    assert Redaction(()).data(b"anything") == b"anything"
