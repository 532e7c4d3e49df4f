"""The tools a route offers: which they are, what they are called, and which one a name means."""

from __future__ import annotations

import re

import pytest

from proxy.toolchain.catalogue import Catalogue, Listed, Place, chosen, server_of

SCHEMA: dict[str, object] = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def tools(*names: str) -> tuple[Listed, ...]:
    return tuple(Listed(name, f"Does {name}.", SCHEMA) for name in names)


def catalogue(*places: tuple[str, str]) -> Catalogue:
    return Catalogue({Place(*place): Listed(place[1], "", SCHEMA) for place in places})


LISTED = {"clock": tools("now", "zones"), "search": tools("find", "now"), "a.b": tools("c")}


@pytest.mark.parametrize(
    ("wanted", "offered", "missing"),
    [
        (["clock"], [("clock", "now"), ("clock", "zones")], ()),
        (["clock.zones"], [("clock", "zones")], ()),
        (["search.find", "clock"], [("search", "find"), ("clock", "now"), ("clock", "zones")], ()),
        (["clock", "clock.now"], [("clock", "now"), ("clock", "zones")], ()),
        (["a.b"], [("a.b", "c")], ()),
        (["clock.then", "other", "search.find"], [("search", "find")], ("clock.then", "other")),
        ([], [], ()),
    ],
)
def test_a_route_names_servers_or_single_tools(
    wanted: list[str], offered: list[tuple[str, str]], missing: tuple[str, ...]
) -> None:
    found, absent = chosen(wanted, LISTED)
    assert (list(found), absent) == (offered, missing)


@pytest.mark.parametrize(
    ("wanted", "server"),
    [("clock", "clock"), ("clock.now", "clock"), ("clock.now.utc", "clock"), ("a.b", "a.b"), ("other.x", "other")],
)
def test_an_entry_names_one_server(wanted: str, server: str) -> None:
    assert server_of(wanted, ["clock", "a.b"]) == server


def test_a_function_is_what_the_server_said() -> None:
    assert Catalogue({Place("clock", "now"): Listed("now", "Tells the time.", SCHEMA)}).functions == [
        {"type": "function", "function": {"name": "now", "description": "Tells the time.", "parameters": SCHEMA}}
    ]


def test_a_tool_without_a_description_is_offered_without_one() -> None:
    assert catalogue(("clock", "now")).functions == [
        {"type": "function", "function": {"name": "now", "parameters": SCHEMA}}
    ]


def test_a_name_that_two_servers_have_gets_the_servers() -> None:
    offered = catalogue(("clock", "now"), ("clock", "zones"), ("search", "now"))
    assert offered.names == ("clock__now", "zones", "search__now")
    assert offered.find("search__now") == ("search", "now")
    assert offered.find("now") is None


@pytest.mark.parametrize(
    "places",
    [
        [("c", "get.time/of day"), ("c", "überall")],
        [("c", "x" * 200), ("c", "x" * 201)],
        [("c", "a.b"), ("c", "a_b"), ("d", "a b")],
        [("a", "b__c"), ("a__b", "c"), ("x", "c"), ("y", "b__c")],
        [("c", ""), ("c", "日本語"), ("c", "中文字")],
        [("s" * 70, "now"), ("t" * 70, "now")],
    ],
)
def test_every_name_is_valid_unique_and_leads_back(places: list[tuple[str, str]]) -> None:
    offered = catalogue(*places)
    assert len(set(offered.names)) == len(places)
    for name, place in zip(offered.names, places, strict=True):
        assert FUNCTION_NAME.fullmatch(name)
        assert offered.find(name) == place
    assert catalogue(*places).names == offered.names


def test_an_empty_catalogue_is_falsy() -> None:
    assert not catalogue()
    assert catalogue(("clock", "now"))
