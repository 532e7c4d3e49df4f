"""An upstream's own error, in all its spellings."""

from __future__ import annotations

import json

import pytest

from proxy.protocols import Failure, answer_error
from proxy.protocols.failure import UNEXPLAINED, failure_of


def test_an_error_object_is_kept_as_it_is() -> None:
    error = {"message": "m", "type": "t", "param": None, "code": "c", "more": [1]}
    assert failure_of({"error": error, "type": "error"}) == Failure(None, error)


def test_a_sentence_becomes_an_object() -> None:
    failure = failure_of({"error": "out of memory", "status": 507})
    assert failure == Failure(507, {"message": "out of memory", "type": "upstream_error", "param": None, "code": None})


@pytest.mark.parametrize("error", [True, [1], 1, {}, "", None])
def test_an_error_that_is_none_leaves_what_stands_beside_it(error: object) -> None:
    assert failure_of({"error": error, "message": "m", "sequence_number": 3}) == Failure(None, {"message": "m"})


def test_a_flat_error_keeps_its_own_type() -> None:
    assert failure_of({"type": "server_error", "message": "m"}).error == {"type": "server_error", "message": "m"}
    assert failure_of({"type": "error", "message": "m"}).error == {"message": "m"}


def test_an_error_that_says_nothing_says_so() -> None:
    assert failure_of({}) == Failure(None, {"message": UNEXPLAINED})
    assert Failure(None, {"code": 1}).message == UNEXPLAINED
    assert Failure(None, {"message": ["x"]}).message == UNEXPLAINED


@pytest.mark.parametrize("name", ["status", "status_code", "code"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_status_is_named_in_the_error_or_beside_it(name: str, beside: bool) -> None:
    event = {"error": {"message": "m"}, name: 418} if beside else {"error": {"message": "m", name: 418}}
    assert failure_of(event).status == 418


def test_the_errors_own_status_counts_first() -> None:
    assert failure_of({"error": {"message": "m", "code": 429}, "status": 500}).status == 429


@pytest.mark.parametrize("status", [200, 399, 600, -1, 429.0, "429", True, None, [429]])
def test_other_numbers_are_no_status(status: object) -> None:
    assert failure_of({"error": {"message": "m", "code": status}}).status is None


@pytest.mark.parametrize(
    "body", [{"error": {"message": "m", "code": 503}}, {"object": "error", "error": "m", "code": 503}]
)
def test_an_answer_with_an_error_is_a_failure(body: dict[str, object]) -> None:
    failure = answer_error(json.dumps(body).encode())
    assert failure is not None
    assert (failure.status, failure.message) == (503, "m")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"error",
        b'"error"',
        b'["error"]',
        b'{"error":null,"choices":[]}',
        b'{"error":false}',
        b'{"choices":[{"message":{"content":"\\"error\\""}}]}',
        b'{"choices":[{"error":{"message":"inside"}}]}',
        b'{"error":{"message":"cut',
        b'{"error":' + b"[" * 100_000,
    ],
)
def test_any_other_answer_is_none(body: bytes) -> None:
    assert answer_error(body) is None
