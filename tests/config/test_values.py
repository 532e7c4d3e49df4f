from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.config import values
from proxy.config.values import Balance


@pytest.mark.parametrize(
    ("value", "balance"),
    [
        ("least_busy", Balance("least_busy")),
        ("round_robin", Balance("round_robin")),
        ("random", Balance("random")),
        ("prefix", Balance("prefix")),
        ("sticky", Balance("sticky", "session")),
        ({"sticky": "key"}, Balance("sticky", "key")),
        ({"sticky": "user"}, Balance("sticky", "user")),
        ({"sticky": {"header": "X-Session"}}, Balance("sticky", "header", "X-Session")),
    ],
)
def test_balance_is_a_method_and_what_sticks(value: object, balance: Balance) -> None:
    assert values.parse_balance(value) == balance


@pytest.mark.parametrize(
    "value",
    [
        "leastbusy", "", None, 5, [], {}, {"sticky": "cookie"}, {"sticky": "key", "x": 1}, {"sticky": {}},
        {"sticky": {"header": "X", "y": 1}}, {"random": "key"}, {"sticky": {"header": "X Y"}},
    ],
)  # fmt: skip
def test_other_balance_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be least_busy|header name"):
        values.parse_balance(value)


@pytest.mark.parametrize(("value", "gather"), [("off", "off"), (False, "off"), ("auto", "auto"), ("2ms", 0.002)])
def test_gather_is_off_auto_or_a_time(value: object, gather: object) -> None:
    assert values.parse_gather(value) == gather


@pytest.mark.parametrize("value", ["on", True, None, "2s", 5, "none"])
def test_other_gather_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be (off|at most)"):
        values.parse_gather(value)


def test_client_that_leaves_cancels_unless_kept() -> None:
    assert values.parse_on_disconnect("cancel") is None
    assert values.parse_on_disconnect({"keep": "30s"}) == 30.0


@pytest.mark.parametrize("value", ["keep", None, {}, {"keep": "30s", "x": 1}, {"keep": "x"}, {"keep": None}, ["keep"]])
def test_other_word_for_a_client_that_leaves_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be cancel|write a duration"):
        values.parse_on_disconnect(value)


def test_file_counts_from_the_folder() -> None:
    assert values.parse_file("cert.pem", Path("/etc/penstock")) == Path("/etc/penstock/cert.pem")
    assert values.parse_file("/run/key", Path("/etc/penstock")) == Path("/run/key")
    assert values.parse_file("cert.pem", None) == Path("cert.pem")


@pytest.mark.parametrize("value", ["", "a\0b", 5, None])
def test_file_must_have_a_name(value: object) -> None:
    with pytest.raises(ValueError, match="must"):
        values.parse_file(value, None)


@pytest.mark.parametrize("name", ["chat", "Qwen/Qwen3-32B", "größe 2", "gpt-4.1"])
def test_name_is_some_text(name: str) -> None:
    assert values.parse_name(name) == name


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x7f", 5, None])
def test_name_has_no_control_characters_or_outer_blanks(name: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        values.parse_name(name)


def test_model_may_be_empty() -> None:
    assert values.parse_model("") == ""
    assert values.parse_model("m") == "m"


@pytest.mark.parametrize("path", ["health", "", "/a b", "/ä", "/a\r\n", "/a#b"])
def test_path_begins_with_a_slash(path: str) -> None:
    assert values.parse_path("/health?deep=1") == "/health?deep=1"
    with pytest.raises(ValueError, match="begins with /"):
        values.parse_path(path)


@pytest.mark.parametrize(
    ("parse", "least"), [(values.parse_positive, 1), (values.parse_number, 0), (values.parse_port, 0)]
)
def test_number_has_a_least_value(parse: Callable[[object], int], least: int) -> None:
    assert parse(least) == least
    with pytest.raises(ValueError, match="must be"):
        parse(least - 1)


def test_port_ends_at_65535() -> None:
    assert values.parse_port("65535") == 65535
    with pytest.raises(ValueError, match="0 to 65535"):
        values.parse_port(65536)


def test_timeout_is_longer_than_nothing() -> None:
    assert values.parse_time("1ms") == 0.001
    assert values.parse_time_or_none("none") is None
    for parse in (values.parse_time, values.parse_time_or_none):
        with pytest.raises(ValueError, match="longer than 0s"):
            parse("0s")
