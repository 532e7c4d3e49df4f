"""Why there is no stage, in its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.access.keys import Key
from proxy.config.loader import load
from proxy.downstream.stage_refusals import failure_in, refuse_model
from proxy.errors import Forbidden, InvalidRequest
from proxy.protocols.endpoints import for_path
from proxy.protocols.failure import Failure
from proxy.relay import Answer
from proxy.request import ProxyRequest, RequestBody
from proxy.routing.table import RoutingTable, build_table
from proxy.streams.stream import Stream

if TYPE_CHECKING:
    from pathlib import Path

ROUTES = """
routes:
  b: {replicas: ["demo://"], aliases: [other]}
  a: {replicas: []}
  unset: {model: "${MODEL_NOBODY_SET:-}", replicas: ["demo://"]}
"""


@pytest.fixture
def table(tmp_path: Path) -> RoutingTable:
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES)
    return build_table(load(file, {}))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("x", "Unknown model: x. Available models: ['b', 'a', 'unset']"),
        ("unset", "Model unset is not configured. Check environment variables."),
        ("a", "No service configured for model: a"),
        ("x" * 300, f"Unknown model: {'x' * 256}…. Available models: ['b', 'a', 'unset']"),
    ],
)
def test_a_model_is_refused_in_the_words_its_clients_know(model: str, words: str, table: RoutingTable) -> None:
    with pytest.raises(InvalidRequest) as raised:
        refuse_model(table, model, None)
    assert (raised.value.message, raised.value.param) == (words, "model_container")


def test_a_model_that_can_be_had_is_not_refused(table: RoutingTable) -> None:
    refuse_model(table, "b", None)
    refuse_model(table, "other", Key("web", ("b",)))


def test_a_key_is_told_of_its_own_models_only(table: RoutingTable) -> None:
    with pytest.raises(InvalidRequest, match=r"Available models: \['b'\]$"):
        refuse_model(table, "x", Key("web", ("b",)))
    with pytest.raises(Forbidden):
        refuse_model(table, "a", Key("web", ("b",)))


def answered(status: int, body: bytes, failure: Failure | None = None) -> Answer:
    parsed = RequestBody.parse(b'{"model":"b"}')
    request = ProxyRequest("/v1/chat/completions", "", (), (), parsed, "r")
    watcher = for_path(request.path).watcher(parsed)
    return Answer(request, status, (), body, False, Stream(), watcher, failure, lambda: None)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error":{"message":"too long"}}', "too long"),
        (404, b'{"detail":"Not Found"}', "Not Found"),
        (422, b'{"detail":[{"loc":[]}]}', "The model server answered with status 422."),
        (500, b"<html>", "The model server answered with status 500."),
        (503, b'{"message":"later"}', "later"),
    ],
)
def test_an_answers_own_words_are_found(status: int, body: bytes, words: str) -> None:
    failure = failure_in(answered(status, body))
    assert failure is not None
    assert (failure.message, failure.status) == (words, status)


def test_an_answer_that_is_none_is_no_failure() -> None:
    assert failure_in(answered(200, b"{}")) is None


def test_a_failure_told_under_200_is_one() -> None:
    told = Failure(None, {"message": "out of memory"})
    assert failure_in(answered(502, b"", told)) is told
