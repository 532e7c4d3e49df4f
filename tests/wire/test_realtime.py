"""What of a Realtime URL, a subprotocol and a close is the gateway's business."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidRequest
from proxy.wire.realtime import is_failure, model_of, passed_close, passes, selection, upstream_query


@pytest.mark.parametrize(
    ("query", "model"),
    [
        ("model=chat", "chat"),
        ("x=1&model=chat&y", "chat"),
        ("model=org%2Fvoice%20one", "org/voice one"),
        ("model=a+b", "a b"),
        ("m%6Fdel=chat", "chat"),
        ("model=a=b", "a=b"),
    ],
)
def test_the_query_names_the_model(query: str, model: str) -> None:
    assert model_of(query) == model


@pytest.mark.parametrize("query", ["", "model", "model=", "Model=chat", "x=model", "&&"])
def test_a_query_without_a_model_says_so(query: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        model_of(query)
    assert (raised.value.code, raised.value.param) == ("missing_model", "model")


@pytest.mark.parametrize("query", ["model=a&model=b", "model=a&model=a", "model=a&m%6fdel=b"])
def test_two_models_are_refused(query: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        model_of(query)
    assert raised.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("model=chat", "model=org%2Fvoice"),
        ("a=%2f+%20&model=chat&b=&c", "a=%2f+%20&model=org%2Fvoice&b=&c"),
        ("ticket=t1&model=chat", "model=org%2Fvoice"),
        ("model=chat&tick%65t=t1&x=1", "model=org%2Fvoice&x=1"),
        ("model=chat&tickets=t1", "model=org%2Fvoice&tickets=t1"),
    ],
)
def test_the_replica_gets_its_own_name_and_the_rest_as_written_but_for_our_ticket(query: str, sent: str) -> None:
    assert upstream_query(query, "org/voice") == sent


def test_a_model_cannot_end_its_member() -> None:
    assert upstream_query("model=x", "a&b=c#d e\r\n") == "model=a%26b%3Dc%23d%20e%0D%0A"


def test_the_codes_that_pass_are_these() -> None:
    passing = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    assert {code for code in range(6000) if passes(code)} == passing


def test_a_close_passes_with_its_reason_and_one_without_a_code_is_the_usual_end() -> None:
    assert passed_close(4001, "why") == (4001, "why")
    assert passed_close(None, "") == (1000, "")
    assert passed_close(1006, "what") == (1000, "")


def test_a_server_that_closes_with_an_error_of_the_protocols_has_failed() -> None:
    assert [code for code in (1000, 1001, 1002, 1011, 1014, 3000, 4000) if is_failure(code)] == [1002, 1011, 1014]


@pytest.mark.parametrize(
    ("selected", "offered", "told"),
    [
        (None, (), None),
        (None, ("v2",), None),
        (None, ("v2", "realtime"), "realtime"),
        ("v2", ("v2", "realtime"), "v2"),
    ],
)
def test_the_model_servers_choice_counts_and_realtime_is_ours_where_it_makes_none(
    selected: str | None, offered: tuple[str, ...], told: str | None
) -> None:
    assert selection(selected, offered) == told
