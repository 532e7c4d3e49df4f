from typing import Any

from proxy.config.inheritance import effective, merge
from proxy.config.route import Breaker, Route


def route(**settings: Any) -> Route:
    return Route.model_validate(settings)


def test_defaults_fill_what_a_route_leaves_unsaid() -> None:
    chat = effective("chat", route(keepalive="5s"), route(keepalive="1s", strict=True))
    assert (chat.keepalive_s, chat.strict) == (5.0, True)


def test_nested_mappings_merge_member_by_member() -> None:
    merged = merge(route(timeouts={"idle": "none"}), route(timeouts={"idle": "9s", "total": "1h"}))
    assert (merged.timeouts.idle_s, merged.timeouts.total_s, merged.timeouts.connect_s) == (None, 3600.0, 5.0)


def test_route_that_turns_a_part_off_keeps_it_off() -> None:
    assert merge(route(breaker="none"), route(breaker={"failures": 9})).breaker is None


def test_route_that_names_a_part_turns_it_on_again() -> None:
    assert merge(route(breaker={"failures": 9}), route(breaker="none")).breaker == Breaker(failures=9)


def test_lists_do_not_merge() -> None:
    merged = merge(route(tools=["a"]), route(tools=["b"]))
    assert merged.tools == ("a",)


def test_what_counts_as_set_is_what_the_route_says() -> None:
    merged = merge(route(timeouts={"idle": "1s"}), route(strict=True, timeouts={"total": "1h"}))
    assert merged.model_fields_set == {"timeouts"}
    assert merged.timeouts.model_fields_set == {"idle_s"}


def test_model_is_the_route_name_unless_somebody_says_it() -> None:
    assert effective("chat", route(), route()).model == "chat"
    assert effective("chat", route(model="m"), route()).model == "m"
    assert effective("chat", route(), route(model="d")).model == "d"
    assert effective("chat", route(model=""), route()).model == ""


def test_inherited_fallback_to_itself_is_left_out() -> None:
    defaults = route(fallbacks=["small", "large"])
    assert [fallback.route for fallback in effective("small", route(), defaults).fallbacks] == ["large"]
    assert [fallback.route for fallback in effective("chat", route(), defaults).fallbacks] == ["small", "large"]


def test_neither_side_is_changed() -> None:
    own, defaults = route(timeouts={"idle": "1s"}), route(timeouts={"total": "1h"})
    merge(own, defaults)
    assert own == route(timeouts={"idle": "1s"})
    assert defaults == route(timeouts={"total": "1h"})
