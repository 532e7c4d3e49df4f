"""Replicas: where a URL leads, and what must not be seen of one."""

from __future__ import annotations

import pytest

from proxy.routing.replica import Origin, Replica, parse_origin


@pytest.mark.parametrize(
    ("url", "origin", "prefix"),
    [
        ("http://gpu-1:8000", Origin("http", "gpu-1", 8000), ""),
        ("http://gpu-1", Origin("http", "gpu-1", 80), ""),
        ("https://api.example", Origin("https", "api.example", 443), ""),
        ("HTTPS://API.Example:8443/", Origin("https", "api.example", 8443), ""),
        ("http://[::1]:9000", Origin("http", "::1", 9000), ""),
        ("http://gpu-1/v1", Origin("http", "gpu-1", 80), ""),
        ("http://gpu-1/v1/", Origin("http", "gpu-1", 80), ""),
        ("https://router.example/api/v1", Origin("https", "router.example", 443), "/api"),
        ("https://router.example/api/", Origin("https", "router.example", 443), "/api"),
        ("http://gpu-1/v10", Origin("http", "gpu-1", 80), "/v10"),
        ("http://gpu-1/old/v1/", Origin("http", "gpu-1", 80), "/old"),
        ("demo://", Origin("demo", "demo", 0), ""),
        ("demo://?delay=0", Origin("demo", "demo", 0, "delay=0"), ""),
    ],
)
def test_a_url_is_an_origin_and_a_prefix(url: str, origin: Origin, prefix: str) -> None:
    assert parse_origin(url) == (origin, prefix)


@pytest.mark.parametrize("url", ["ftp://gpu-1", "http://", "gpu-1:8000", "/v1", ""])
def test_what_is_no_address_of_a_model_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a replica's url is"):
        parse_origin(url)


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        (Origin("http", "gpu", 80), "gpu"),
        (Origin("http", "gpu", 8000), "gpu:8000"),
        (Origin("https", "api.example", 443), "api.example"),
        (Origin("https", "api.example", 80), "api.example:80"),
        (Origin("http", "::1", 80), "[::1]"),
        (Origin("http", "::1", 9000), "[::1]:9000"),
        (Origin("demo", "demo", 0), "demo"),
    ],
)
def test_the_authority_names_a_port_only_where_it_must(origin: Origin, authority: str) -> None:
    assert origin.authority == authority


def test_equal_origins_share_connections() -> None:
    assert parse_origin("http://gpu:80/a")[0] == parse_origin("http://GPU/b/v1")[0]
    assert parse_origin("http://gpu:80")[0] != parse_origin("https://gpu:80")[0]
    assert parse_origin("demo://?delay=0")[0] != parse_origin("demo://?delay=1")[0]


@pytest.mark.parametrize(
    ("prefix", "query", "target"),
    [
        ("", "", "/v1/chat/completions"),
        ("/api", "", "/api/v1/chat/completions"),
        ("/api", "beta=true", "/api/v1/chat/completions?beta=true"),
    ],
)
def test_a_target_is_prefix_path_and_query(prefix: str, query: str, target: str) -> None:
    replica = Replica(0, Origin("http", "gpu", 80), prefix)
    assert replica.target("/v1/chat/completions", query) == target


def test_a_replica_does_not_show_its_headers() -> None:
    replica = Replica(0, Origin("http", "gpu", 80), "", (("Authorization", "Bearer sk-canary"),))
    assert "canary" not in repr(replica)


def test_a_replica_takes_stream_options_until_it_is_known_not_to() -> None:
    assert Replica(0, Origin("http", "gpu", 80), "").takes_stream_options


def test_two_replicas_are_two_even_at_the_same_address() -> None:
    origin = Origin("http", "gpu", 80)
    assert Replica(0, origin, "") != Replica(0, origin, "")


def test_what_is_in_flight_is_its_standings() -> None:
    replica = Replica(0, Origin("http", "gpu", 80), "")
    replica.in_flight += 2
    assert (replica.in_flight, replica.standing.in_flight) == (2, 2)
    assert Replica(1, Origin("http", "gpu", 80), "").in_flight == 0
