"""The error hierarchy keeps what it promises at its top: statuses, codes, types."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from proxy import errors
from proxy.errors import ClientError, GatewayError, NoReplica, StaleConnection, Unavailable, UpstreamError


def kinds(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from kinds(below)


def documented() -> dict[str, tuple[int, list[str]]]:
    """Name -> status and codes, from the tree in the docstring."""
    rows = re.findall(r"[├└]── (\w+) +(\d{3}) +([a-z_, ]+)", errors.__doc__ or "")
    return {name: (int(status), codes.strip(" ;").split(", ")) for name, status, codes in rows}


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_error_has_the_status_and_the_code_its_tree_says(kind: type[GatewayError]) -> None:
    error = kind("why")
    if kind.__name__ in documented():
        status, codes = documented()[kind.__name__]
        assert error.status == status
        assert error.code in [code.partition(";")[0].strip() for code in codes]
    else:
        assert kind in (ClientError, UpstreamError, StaleConnection, NoReplica)


def test_the_tree_names_every_error_that_has_a_status_of_its_own() -> None:
    assert set(documented()) <= {kind.__name__ for kind in kinds()}
    assert len(documented()) >= 16


@pytest.mark.parametrize("kind", list(kinds()))
def test_a_clients_fault_is_a_4xx_and_an_upstreams_a_502_or_504(
    kind: type[GatewayError],
) -> None:
    if issubclass(kind, ClientError):
        assert 400 <= kind.status < 500
    elif issubclass(kind, UpstreamError):
        assert kind.status in (502, 504)
        assert kind("x").type == "upstream_error"
    else:
        assert kind.status in (429, 500, 503)


def test_an_error_about_something_keeps_all_else() -> None:
    error = Unavailable("none left", code="queue_timeout", param="model", retry_after_s=1.5)
    about = error.about('route "m"')
    assert type(about) is Unavailable
    assert str(about) == about.message == 'route "m": none left'
    assert (about.code, about.param, about.retry_after_s) == ("queue_timeout", "model", 1.5)
