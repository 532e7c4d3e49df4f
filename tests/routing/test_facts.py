"""What a balancer may know of a request."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.routing.facts import RequestFacts
from tests.support.replicas import facts

SESSION = ("X-Penstock-Session", "s-1")


@pytest.mark.parametrize(
    ("request_facts", "identity"),
    [
        (facts(SESSION, key="web", user="ann"), "s-1"),
        (facts(key="web", user="ann"), "ann"),
        (facts(key="web"), "web"),
        (facts(), None),
    ],
)
def test_a_session_is_the_clients_word_else_its_user_else_its_key(
    request_facts: RequestFacts, identity: str | None
) -> None:
    assert request_facts.identity("session") == identity


def test_by_key_nothing_else_counts() -> None:
    assert facts(SESSION, key="web", user="ann").identity("key") == "web"
    assert facts(SESSION, user="ann").identity("key") is None


def test_by_user_the_header_does_not_count() -> None:
    assert facts(SESSION, key="web", user="ann").identity("user") == "ann"
    assert facts(SESSION, key="web").identity("user") == "web"


def test_by_header_the_named_one_counts_in_any_case() -> None:
    request = facts(("x-tenant", "blue"), key="web", user="ann")
    assert request.identity("header", "X-Tenant") == "blue"
    assert request.identity("header", "X-Other") == "web"
    assert facts(("x-tenant", ""), key="web").identity("header", "X-Tenant") == "web"


@pytest.mark.parametrize(
    "members",
    [
        {"user": "ann"},
        {"safety_identifier": "ann"},
        {"metadata": {"user_id": "ann"}},
        {"user": None, "safety_identifier": "ann"},
        {"user": "", "metadata": {"user_id": "ann"}},
        {"user": 7, "metadata": {"user_id": "ann"}},
    ],
)
def test_a_user_is_named_as_each_protocol_names_one(members: dict[str, Any]) -> None:
    assert facts(**members).identity("user") == "ann"


@pytest.mark.parametrize("members", [{"metadata": "ann"}, {"metadata": {"user_id": 7}}, {"user": ["ann"]}])
def test_what_is_no_name_is_nobody(members: dict[str, Any]) -> None:
    assert facts(key="web", **members).identity("user") == "web"


def test_prompt_blocks_are_computed_once() -> None:
    request = facts(prompt="x" * 5000)
    assert len(request.prompt_blocks()) == 4
    assert request.prompt_blocks() is request.prompt_blocks()
