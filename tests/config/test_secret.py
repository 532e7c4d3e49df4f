from collections.abc import Callable

import pytest
from pydantic import TypeAdapter, ValidationError

from proxy.config import secret
from proxy.config.secret import Headers, Secret


def test_secret_shows_stars_only() -> None:
    hidden = Secret("hunter2")
    assert str(hidden) == f"{hidden}" == "***"
    assert "hunter2" not in repr([hidden])
    assert hidden.get_secret_value() == "hunter2"


def test_empty_key_of_ours_is_no_key() -> None:
    assert secret.parse_api_key("") is None
    assert secret.parse_api_key("k") == Secret("k")


def test_empty_client_key_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        secret.parse_client_key("")


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\n", " a", "a ", "a\0", "ключ"])
def test_header_value_cannot_start_another_header(value: str) -> None:
    with pytest.raises(ValueError, match="a header cannot carry"):
        secret.parse_header_value(value)


@pytest.mark.parametrize("value", [" k", "k\n", "\tk"])
def test_client_key_has_no_blanks_around_it(value: str) -> None:
    with pytest.raises(ValueError, match="no client can send"):
        secret.parse_client_key(value)


@pytest.mark.parametrize("name", ["", "X Y", "X:", "Ä", "X\n", 5])
def test_bad_header_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"header name|must be text"):
        secret.parse_header_name(name)


@pytest.mark.parametrize("name", ["Host", "content-length", "TE", "Connection"])
def test_header_that_frames_the_request_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the gateway writes itself"):
        secret.parse_header_name(name)


def test_same_header_in_two_spellings_is_refused() -> None:
    with pytest.raises(ValidationError, match="same header twice"):
        TypeAdapter(Headers).validate_python({"X-Team": "a", "x-team": "b"})


def test_digest_is_sixty_four_digits() -> None:
    assert secret.parse_digest("A" * 64) == "a" * 64
    with pytest.raises(ValueError, match="sha256sum"):
        secret.parse_digest("a" * 63)


def test_state_is_memory_or_a_hidden_address() -> None:
    assert secret.parse_state("memory") is None
    assert secret.parse_state("redis://:pw@host") == Secret("redis://:pw@host")


@pytest.mark.parametrize(
    "parse",
    [
        secret.parse_header_value, secret.parse_api_key, secret.parse_client_key, secret.parse_digest,
        secret.parse_variable_value, secret.parse_state, secret.parse_secret_url,
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [12345, True, None, ["12345"], {"12345": 1}, "12345\0\n"])
def test_refusal_does_not_repeat_the_secret(parse: Callable[[object], object], value: object) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        parse(value)
    assert "12345" not in str(caught.value)
