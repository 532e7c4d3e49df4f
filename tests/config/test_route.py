from typing import Any

import pytest
from pydantic import ValidationError

from proxy.config.route import Replica, Route
from proxy.config.values import Balance


def route(**settings: Any) -> Route:
    return Route.model_validate(settings)


def test_route_has_the_documented_defaults() -> None:
    assert Route().model_dump() == {
        "model": "",
        "protocol": "openai",
        "aliases": (),
        "replicas": (),
        "balance": Balance("least_busy"),
        "fallbacks": (),
        "health": {"path": "/health", "every_s": 5.0, "timeout_s": 2.0, "fall": 3, "rise": 2},
        "breaker": {"failures": 5, "within_s": 30.0, "open_for_s": 10.0},
        "limits": {"streams": None, "queue": 256, "queue_timeout_s": 30.0},
        "timeouts": {"connect_s": 5.0, "first_token_s": 120.0, "idle_s": 60.0, "total_s": None},
        "retry": {"attempts": 3, "max_wait_s": 5.0},
        "hedge_s": None,
        "on_break": "error",
        "keepalive_s": 15.0,
        "keep_s": None,
        "tools": (),
        "toolchain": {"max_rounds": 8, "parallel": 8},
        "auth": "replica",
        "strict": False,
    }


def test_short_form_is_the_url_of_the_only_replica() -> None:
    assert Route.model_validate("demo://") == route(replicas=[{"url": "demo://"}])


def test_replica_may_be_a_url_or_a_mapping() -> None:
    first, second = route(replicas=["http://a/v1", {"url": "http://b", "weight": 2, "api_key": "k"}]).replicas
    assert (first.url, first.weight, first.api_key, first.continues, first.responses) == (
        "http://a", 1, None, "replay", None,
    )  # fmt: skip
    assert second.api_key is not None
    assert (second.url, second.weight, second.api_key.get_secret_value()) == ("http://b", 2, "k")


def test_route_may_have_no_replica() -> None:
    assert Route.model_validate(None).replicas == ()
    assert route(replicas=[]).replicas == ()


def test_fallback_may_be_a_name_or_for_some_failures() -> None:
    first, second = route(fallbacks=["small", {"route": "long", "for": ["context_length"]}]).fallbacks
    assert (first.route, first.reasons) == ("small", ())
    assert (second.route, second.reasons) == ("long", ("context_length",))


@pytest.mark.parametrize("part", ["health", "breaker", "keepalive", "hedge"])
def test_part_can_be_turned_off_with_none(part: str) -> None:
    assert getattr(route(**{part: "none"}), Route.file_keys()[part]) is None


def test_part_with_nothing_after_it_is_not_turned_off() -> None:
    assert route(health=None, breaker=None, keepalive=None) == Route()


def test_limits_may_be_none() -> None:
    limits = route(limits={"streams": "none", "queue": 0, "queue_timeout": "none"}).limits
    assert (limits.streams, limits.queue, limits.queue_timeout_s) == (None, 0, None)


def test_answer_may_go_on_for_a_client_that_left() -> None:
    assert route(on_disconnect={"keep": "30s"}).keep_s == 30.0


def test_two_credentials_for_one_replica_are_refused() -> None:
    with pytest.raises(ValidationError, match="keep one"):
        Replica.model_validate({"url": "http://a", "api_key": "k", "headers": {"authorization": "Bearer x"}})


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "grpc"},
        {"protocol": "OpenAI"},
        {"replicas": "http://a"},
        {"replicas": [5]},
        {"replicas": [{}]},
        {"replicas": [{"url": "http://a", "weight": 0}]},
        {"replicas": [{"url": "http://a", "continues": "somehow"}]},
        {"replicas": [{"url": "http://a", "responses": "maybe"}]},
        {"timeouts": {"connect": "none"}},
        {"timeouts": {"first_token": "0s"}},
        {"timeouts": "5s"},
        {"keepalive": "off"},
        {"hedge": 2},
        {"retry": {"attempts": 0}},
        {"limits": {"streams": 0}},
        {"health": {"path": "health"}},
        {"health": {"every": "0s"}},
        {"health": False},
        {"fallbacks": [{"route": "a", "for": ["rain"]}]},
        {"on_break": "resume"},
        {"auth": "client"},
        {"strict": 1},
        {"aliases": "a"},
        {"aliases": [1.5]},
        {"toolchain": {"max_rounds": "many"}},
    ],
    ids=str,
)
def test_bad_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Route.model_validate(settings)
