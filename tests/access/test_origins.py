"""Origins and hosts: who is let in, and every way to look like somebody who is."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.origins import HostPolicy, OriginPolicy

LISTED = OriginPolicy(
    [
        "https://app.example.com",
        "http://localhost:*",
        "https://*.example.org",
        "http://*.dev.test:*",
        "tauri://localhost",
    ],
    loopback_bind=False,
)
LOOPBACK = OriginPolicy(None, loopback_bind=True)
PUBLIC = OriginPolicy(None, loopback_bind=False)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "https://app.example.com:443",
        "HTTPS://App.Example.COM",
        "https://app.example.com.",
        "http://localhost",
        "http://localhost:3000",
        "http://localhost:65535",
        "https://a.example.org",
        "https://a.b.c.example.org",
        "http://x.dev.test:5173",
        "http://x.dev.test",
        "tauri://localhost",
    ],
)
def test_a_listed_origin_is_allowed(origin: str) -> None:
    assert LISTED.allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",  # another scheme
        "https://app.example.com:8443",  # another port
        "https://example.com",
        "https://evil-app.example.com",
        "https://app.example.com.evil.test",
        "https://localhost:3000",
        "http://localhost.evil.test:3000",
        "http://notlocalhost:3000",
        "https://example.org",  # *.example.org is what is below it
        "https://evilexample.org",
        "https://a.example.org:8443",
        "http://a.example.org",
        "http://dev.test:1",
        "tauri://localhost:1",
        "tauri://evil",
    ],
)
def test_another_origin_is_not_allowed(origin: str) -> None:
    assert not LISTED.allows(origin)


MALFORMED = [
    "",
    "null",
    "*",
    "localhost:3000",
    "//localhost:3000",
    "http:/localhost",
    "http://",
    "http://:3000",
    "http://localhost:port",
    "http://localhost:65536",
    "http://localhost:999999",
    "http://localhost:-1",
    "http://localhost:*",
    "http://localhost:3000/",
    "http://localhost:3000/path",
    "http://localhost:3000?q",
    "http://localhost:3000#f",
    "http://user@localhost:3000",
    "http://evil.test@localhost",
    "http://localhost\\@evil.test",
    "http://localhost 3000",
    " http://localhost",
    "http://localhost\n",
    "http://localhost\x00",
    "http://localhost,http://localhost:1",
    "http://local host",
    "http://[::1",
    "http://[::g]",
    "http://[1:2]:80",
    "http://..localhost",
    "http://a..localhost",
    "http://loca\u212ahost",  # the Kelvin sign, whose lower case is an ordinary k
    "http://localh\udcffost",
    "http://localhost：3000",
]


@pytest.mark.parametrize("origin", MALFORMED)
@pytest.mark.parametrize("policy", [LISTED, LOOPBACK, PUBLIC])
def test_null_and_malformed_origins_are_never_allowed(policy: OriginPolicy, origin: str) -> None:
    assert not policy.allows(origin)
    assert not policy.allows_request(origin, "localhost:3000", "http")
    assert not policy.allows_request(origin, origin.partition("://")[2] or origin, "http")


def test_the_kelvin_sign_is_no_k() -> None:
    assert not OriginPolicy(["http://k.test"], loopback_bind=False).allows("http://\u212a.test")
    assert not HostPolicy(["k.test"], loopback_bind=False).allows("\u212a.test")
    assert not OriginPolicy(["kiosk://page"], loopback_bind=False).allows("\u212aiosk://page")


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:5173",
        "https://localhost",
        "http://app.localhost:8000",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
        "https://[0:0:0:0:0:0:0:1]",
    ],
)
def test_left_out_on_a_loopback_bind_every_loopback_page_is_allowed(origin: str) -> None:
    assert LOOPBACK.allows(origin)
    assert not PUBLIC.allows(origin)


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "http://127.0.0.1.evil.test", "http://localhost.evil.test", "ftp://localhost"]
)
def test_left_out_on_a_loopback_bind_no_other_page_is_allowed(origin: str) -> None:
    assert not LOOPBACK.allows(origin)


def test_an_empty_list_allows_no_page_on_a_loopback_bind_either() -> None:
    nobody = OriginPolicy([], loopback_bind=True)
    assert not nobody.allows("http://localhost:3000")
    assert nobody.allows_request("http://localhost:8080", "localhost:8080", "http")


def test_a_request_without_an_origin_comes_from_no_page() -> None:
    assert PUBLIC.allows_request(None, "gateway.test", "https")


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://gateway.test:8080", "gateway.test:8080", "http"),
        ("http://gateway.test", "gateway.test", "http"),
        ("http://gateway.test", "gateway.test:80", "http"),
        ("http://gateway.test:80", "GATEWAY.test.", "http"),
        ("https://gateway.test", "gateway.test:443", "https"),
        ("http://[::1]:8080", "[0::1]:8080", "http"),
        ("https://gateway.test", "gateway.test", "http"),  # TLS ends in front of us
    ],
)
def test_our_own_page_is_allowed(origin: str, host: str, scheme: str) -> None:
    assert PUBLIC.allows_request(origin, host, scheme)
    assert not PUBLIC.allows(origin)


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://gateway.test:8081", "gateway.test:8080", "http"),
        ("http://gateway.test:8080", "gateway.test", "http"),
        ("http://other.test:8080", "gateway.test:8080", "http"),
        ("http://gateway.test", "gateway.test", "https"),
        ("https://gateway.test", "gateway.test:80", "http"),
        ("ftp://gateway.test", "gateway.test", "http"),
        ("http://gateway.test", "", "http"),
        ("http://gateway.test", "gateway.test/", "http"),
        ("http://gateway.test", "gateway.test, evil.test", "http"),
    ],
)
def test_a_page_of_another_host_port_or_scheme_is_not_ours(origin: str, host: str, scheme: str) -> None:
    assert not PUBLIC.allows_request(origin, host, scheme)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "null",
        "https://*",
        "*://localhost",
        "https://app.*.com",
        "https://*app.example.com",
        "http://localhost:30*",
        "https://app.example.com/",
        "app.example.com",
        "https://*.*.example.com",
        "",
        "http://localhost:*:*",
    ],
)
def test_a_pattern_that_is_no_origin_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not an origin: write https://app"):
        OriginPolicy([pattern], loopback_bind=True)


ON_LOOPBACK = HostPolicy(["gateway.test", "*.lan.test", "tls.test:8443"], loopback_bind=True)
NAMED = HostPolicy(["gateway.test", "*.lan.test", "tls.test:8443", "web.test:443", "2001:db8::7"], loopback_bind=False)
ANY = HostPolicy([], loopback_bind=False)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "LOCALHOST:8080",
        "localhost.",
        "localhost.:8080",
        "localhost:",
        "app.localhost:1",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.1.2.3",
        "127.255.255.255:1",
        "[::1]",
        "[::1]:8080",
        "[0:0::1]:8080",
        "::1",
    ],
)
def test_loopback_names_are_allowed_on_a_loopback_bind_alone(host: str) -> None:
    assert HostPolicy([], loopback_bind=True).allows(host)
    assert ON_LOOPBACK.allows(host)
    assert not NAMED.allows(host)
    assert ANY.allows(host)


REBINDING = [
    "evil.test",
    "evil.test:8080",
    "localhost.evil.test",
    "127.0.0.1.evil.test",
    "127.0.0.1.nip.test:8080",
    "evillocalhost",
    "0.0.0.0:8080",
    "10.0.0.1",
    "128.0.0.1",
    "127.0.0.256",
    "127.0.0",
    "127.0.0.1.1",
    "[::]",
    "[::2]:8080",
    "[::ffff:10.0.0.1]",
]


@pytest.mark.parametrize("host", REBINDING)
def test_a_page_cannot_reach_a_loopback_gateway_under_a_name_of_its_own(host: str) -> None:
    assert not ON_LOOPBACK.allows(host)


GARBAGE = [
    "",
    " ",
    ":8080",
    "localhost ",
    "localhost:8080:1",
    "localhost:abc",
    "localhost:99999",
    "localhost/",
    "localhost@evil.test",
    "evil.test@localhost",
    "localhost,evil.test",
    "[::1",
    "::1]",
    "::1:8080x",
    "127.0.0.1]",
    "[]",
    "[::1]x",
    "[zz]",
    "..",
    "localhost..",
    ".localhost",
    "localhost\r\n",
    "localhost\x00",
    "l\udcffcalhost",
    "http://localhost",
]


@pytest.mark.parametrize("host", GARBAGE)
def test_what_is_no_host_is_not_allowed_where_names_matter(host: str) -> None:
    assert not ON_LOOPBACK.allows(host)
    assert not NAMED.allows(host)


@pytest.mark.parametrize(
    "host",
    [
        "gateway.test",
        "gateway.test:1",
        "GateWay.Test.:8080",
        "a.lan.test",
        "a.b.lan.test:99",
        "tls.test:8443",
        "web.test",
        "web.test:443",
        "[2001:db8::7]:8080",
        "[2001:DB8:0::7]",
    ],
)
def test_a_listed_host_is_allowed(host: str) -> None:
    assert NAMED.allows(host)


@pytest.mark.parametrize(
    "host",
    ["lan.test", "evillan.test", "tls.test", "tls.test:443", "web.test:80", "x.gateway.test", "gateway.test.evil"],
)
def test_a_host_that_is_not_listed_is_not_allowed(host: str) -> None:
    assert not NAMED.allows(host)
    assert not ON_LOOPBACK.allows(host)


def test_listed_hosts_add_to_the_loopback_names() -> None:
    assert ON_LOOPBACK.allows("gateway.test:8080")
    assert ON_LOOPBACK.allows("a.lan.test")


def test_off_loopback_an_empty_list_allows_every_host() -> None:
    assert all(ANY.allows(host) for host in [*REBINDING, *GARBAGE])


def test_a_request_without_a_host_comes_from_no_browser() -> None:
    assert all(policy.allows(None) for policy in (ON_LOOPBACK, NAMED, ANY))


@pytest.mark.parametrize(
    "entry", ["", "*", "https://gateway.test", "gateway.test/", "*.*.test", "a b", "gateway.test:*"]
)
def test_an_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host: write gateway"):
        HostPolicy([entry], loopback_bind=True)


@given(st.text())
def test_nothing_a_client_sends_raises(text: str) -> None:
    LISTED.allows(text)
    LOOPBACK.allows_request(f"http://{text}", text, "http")
    NAMED.allows(text)
    ON_LOOPBACK.allows(f"localhost:{text}")


AROUND = st.text("a1.-@:/]", max_size=3)


@given(AROUND, st.sampled_from(["localhost", "127.0.0.1", "127.9.9.9"]), AROUND)
def test_a_loopback_name_with_something_around_it_is_allowed_only_if_it_still_is_one(
    before: str, name: str, after: str
) -> None:
    if HostPolicy([], loopback_bind=True).allows(before + name + after):
        host = (before + name + after).partition(":")[0].removesuffix(".")
        assert host.endswith(".localhost") or host == "localhost" or ip_address(host).is_loopback


def test_what_was_decided_for_one_request_is_not_taken_for_another() -> None:
    policy = OriginPolicy([], loopback_bind=False)
    page = "http://gateway.test:8080"
    asked = [("gateway.test:8080", "http"), ("gateway.test:8081", "http"), ("gateway.test:8080", "https")] * 2
    assert [policy.allows_request(page, host, scheme) for host, scheme in asked] == [True, False, False] * 2
    assert not policy.allows(page)
    assert OriginPolicy([page], loopback_bind=False).allows(page)


def test_more_names_than_are_remembered_are_decided_all_the_same() -> None:
    hosts = HostPolicy(["*.example.com"], loopback_bind=False)
    for _ in range(2):
        assert all(hosts.allows(f"a{number}.example.com") for number in range(200))
        assert not any(hosts.allows(f"a{number}.example.net") for number in range(200))
