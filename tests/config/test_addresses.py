from collections.abc import Callable

import pytest

from proxy.config import addresses
from proxy.config.addresses import Address


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("http://gpu-1:8000", "http://gpu-1:8000"),
        ("http://gpu-1:8000/", "http://gpu-1:8000"),
        ("http://gpu-1:8000/v1", "http://gpu-1:8000"),
        ("http://gpu-1:8000/v1/", "http://gpu-1:8000"),
        ("https://Host/api", "https://host/api"),
        ("https://host/api/v1/", "https://host/api"),
        ("https://host/v1/api", "https://host/v1/api"),
        ("https://host/apiv1", "https://host/apiv1"),
        ("HTTP://gpu_1", "http://gpu_1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://10.0.0.1:80", "http://10.0.0.1:80"),
        ("demo://", "demo://"),
        ("demo://?tokens=200&interval=20ms&first=100ms", "demo://?tokens=200&interval=20ms&first=100ms"),
    ],
)
def test_replica_url_has_one_spelling(written: str, normal: str) -> None:
    assert addresses.parse_replica_url(written) == normal
    assert addresses.parse_replica_url(normal) == normal


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "is empty"),
        ("gpu-1:8000", "must start with http"),
        ("ftp://gpu-1", "must start with http"),
        ("http://user:hunter2@gpu-1", "put the key into api_key"),
        ("http://user@gpu-1", "put the key into api_key"),
        ("http://", "names no host"),
        ("http://:8000", "names no host"),
        ("http://gpu 1", "blanks"),
        ("http://gpu-1\r\nX: y", "blanks"),
        ("http://gpu-1:0", "port"),
        ("http://gpu-1:99999", "port"),
        ("http://gpu-1:http", "port"),
        ("http://gpu-1/?key=hunter2", "query"),
        ("http://gpu-1/#x", "fragment"),
        ("http://gpu-1?", "query"),
        ("http://[::1", "not a valid URL"),
        ("http://gpü", "neither a name nor an IP"),
        ("http://1.2.3", "neither a name nor an IP"),
        ("demo://host", "no host"),
        ("demo:///path", "no path"),
        ("demo://?tokns=3", "did you mean tokens"),
        ("demo://?tokens=0", "1 to 1000000"),
        ("demo://?tokens=many", "whole number"),
        ("demo://?interval=20", "has no unit"),
        ("demo://?first=2h", "at most 1h"),
        ("demo://?first=1s&first=2s", "first twice"),
        (5, "must be text"),
    ],
)
def test_bad_replica_url_is_refused_without_repeating_it(written: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        addresses.parse_replica_url(written)
    assert "hunter2" not in str(caught.value)


def test_tool_url_keeps_its_query() -> None:
    assert addresses.parse_tool_url("https://host/mcp?key=k") == "https://host/mcp?key=k"


@pytest.mark.parametrize("written", ["host/mcp", "demo://", "https://u:p@host", "https://host/#x", "https://", ""])
def test_bad_tool_url_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"must|names no host|is empty"):
        addresses.parse_tool_url(written)


@pytest.mark.parametrize("url", ["redis://host", "redis://:pw@host:6379/0", "rediss://u:p@host/2"])
def test_redis_url_may_carry_credentials(url: str) -> None:
    assert addresses.parse_redis_url(url) == url


@pytest.mark.parametrize("url", ["", "memroy", "http://host", "redis://", "redis://host/zero"])
def test_bad_redis_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|names no host|is empty"):
        addresses.parse_redis_url(url)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9090", ("127.0.0.1", 9090)), ("[::1]:0", ("::1", 0)), ("localhost:80", ("localhost", 80))],
)
def test_listening_address_prints_as_it_was_written(text: str, address: tuple[str, int]) -> None:
    assert addresses.parse_listen(text) == address
    assert str(Address(*address)) == text


@pytest.mark.parametrize("text", ["9090", ":9090", "host:", "host:x", "host:70000", "http://host:1", "", "a b:1"])
def test_bad_listening_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port|is empty|blanks"):
        addresses.parse_listen(text)


@pytest.mark.parametrize("text", ["", "none"])
def test_listening_address_may_be_left_to_an_unset_variable(text: str) -> None:
    assert addresses.parse_listen_or_none(text) is None


@pytest.mark.parametrize(
    ("text", "host"), [("0.0.0.0", "0.0.0.0"), ("[::]", "::"), ("::1", "::1"), ("localhost", "localhost")]
)
def test_host_to_listen_on_is_held_without_brackets(text: str, host: str) -> None:
    assert addresses.parse_bind_host(text) == host


@pytest.mark.parametrize("text", ["", "http://host", "host:80", "*", "1.2.3", "a/b"])
def test_bad_host_to_listen_on_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a name|is empty"):
        addresses.parse_bind_host(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("LOCALHOST.", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.evil.example", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_hosts_are_known(host: str, loopback: bool) -> None:
    assert addresses.is_loopback(host) is loopback


@pytest.mark.parametrize("text", ["gateway.example", "*.example.com", "gateway:8080", "[::1]:80", "::1", "10.0.0.1"])
def test_allowed_host_may_have_a_wildcard_and_a_port(text: str) -> None:
    assert addresses.parse_allowed_host(text.upper()) == text


@pytest.mark.parametrize("text", ["", "*", "a*b", "http://host", "host:0", "host:99999", "ho st"])
def test_bad_allowed_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|is empty"):
        addresses.parse_allowed_host(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example", "http://localhost:*", "https://*.example.com", "https://*.example.com:*",
        "http://127.0.0.1:5173", "http://[::1]:3000", "chrome-extension://abcdef",
    ],
)  # fmt: skip
def test_origin_may_have_a_wildcard_port_or_subdomain(text: str) -> None:
    assert addresses.parse_origin(text) == text


@pytest.mark.parametrize(
    "text", ["*", "null", "", "https://app.example/", "app.example", "https://*", "https://a.*.b", "http://h:99999"]
)
def test_bad_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|names no valid|is empty"):
        addresses.parse_origin(text)


def test_one_address_is_a_network_too() -> None:
    assert str(addresses.parse_network("10.0.0.7")) == "10.0.0.7/32"
    assert str(addresses.parse_network("10.0.0.7/8")) == "10.0.0.0/8"
    with pytest.raises(ValueError, match="IP address or a network"):
        addresses.parse_network("proxy.example")


@pytest.mark.parametrize(
    "parse",
    [
        addresses.parse_replica_url, addresses.parse_tool_url, addresses.parse_redis_url, addresses.parse_listen,
        addresses.parse_bind_host, addresses.parse_allowed_host, addresses.parse_origin, addresses.parse_network,
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, 5, True, [], {}, "http://\ud800", "http://x\0", "[" * 50, "://", "a" * 70000])
def test_anything_else_is_a_sentence_and_not_a_crash(parse: Callable[[object], object], value: object) -> None:
    with pytest.raises(ValueError, match=r"^[\x20-\x7e]+$"):
        parse(value)
