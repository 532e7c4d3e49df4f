"""What crosses the gateway, and what it writes itself."""

from __future__ import annotations

import pytest

from proxy.wire.headers import (
    answer_head,
    client_credential,
    forwarded,
    http_date,
    new_request_id,
    request_head,
    request_id,
    towards_client,
    towards_upstream,
    trace_id,
    upstream_credentials,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE", "Trailer", "Transfer-Encoding"),
        *("Upgrade", "HTTP2-Settings", "Host", "Content-Length", "Accept-Encoding", "Expect", "Cookie", "Origin"),
        *("Referer", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"),
        *("Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-Fetch-Site", "Sec-CH-UA", "X-Request-ID"),
        *("X-Penstock-Resumable", "Content_Type", "X_Forwarded_For", "Authorization", "x-api-key", "api-key"),
    ],
)
@pytest.mark.parametrize("spelled", [str, str.lower, str.upper])
def test_header_never_reaches_an_upstream(name: str, spelled: type[str]) -> None:
    assert towards_upstream([("Accept", "*/*"), (spelled(name), "x"), ("A", "1")]) == [("Accept", "*/*"), ("A", "1")]


def test_headers_of_sdks_reach_the_upstream_in_their_order_and_case() -> None:
    headers = [
        ("anthropic-beta", "context-1m"),
        ("Anthropic-Version", "2023-06-01"),
        ("OpenAI-Beta", "responses=v1"),
        ("Content-Type", "application/json"),
        ("X-Stainless-Lang", "python"),
        ("accept", "text/event-stream"),
        ("Accept", "application/json"),
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=1"),
        ("Last-Event-ID", "4"),
    ]
    assert towards_upstream(headers) == headers
    assert towards_upstream(dict(headers).items()) == headers


def test_client_credentials_cross_only_where_the_route_says_so() -> None:
    headers = [("Authorization", "Bearer a"), ("X-Api-Key", "b"), ("api-key", "c"), ("Proxy-Authorization", "d")]
    assert towards_upstream(headers) == []
    assert towards_upstream([*headers, ("Cookie", "e")], keep_credentials=True) == headers[:3]


@pytest.mark.parametrize("cross", [towards_upstream, towards_client])
def test_headers_named_by_connection_are_hop_by_hop(cross: type) -> None:
    headers = [
        ("X-Hop", "1"),
        ("Connection", "close, x-HOP"),
        ("connection", " x-other ,,"),
        ("X-Other", "2"),
        ("A", "3"),
    ]
    assert cross(headers) == [("A", "3")]


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "Proxy-Authenticate", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Date"),
        *("Content-Length", "Set-Cookie", "Set-Cookie2", "Server", "Location", "Refresh", "Alt-Svc"),
        *("Strict-Transport-Security", "Clear-Site-Data", "Access-Control-Allow-Origin", "Access-Control-Max-Age"),
        *("X-Penstock-Source", "X-Request-ID", "X-Accel-Redirect", "X-Accel-Buffering", "X-Sendfile"),
    ],
)
@pytest.mark.parametrize("spelled", [str, str.lower, str.upper])
def test_header_never_reaches_a_client(name: str, spelled: type[str]) -> None:
    assert towards_client([("A", "1"), (spelled(name), "x"), ("B", "2")]) == [("A", "1"), ("B", "2")]


def test_headers_of_an_answer_reach_the_client_in_their_order_and_case() -> None:
    headers = [
        ("Content-Type", "text/event-stream"),
        ("Retry-After", "2"),
        ("x-ratelimit-remaining-tokens", "149"),
        ("openai_processing_ms", "12"),
        ("anthropic-ratelimit-requests-limit", "50"),
        ("Link", "<a>"),
        ("link", "<b>"),
    ]
    assert towards_client(headers) == headers


SAID = [("X-Forwarded-For", "203.0.113.7"), ("x-forwarded-for", "10.0.0.1"), ("X-Forwarded-Proto", "https")]


def test_forwarded_says_only_what_the_gateway_knows_of_a_stranger() -> None:
    assert forwarded(SAID, peer="192.0.2.1", scheme="http", host="gw:8080", trusted=False) == [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "gw:8080"),
    ]


def test_forwarded_goes_on_from_what_a_trusted_proxy_says() -> None:
    assert forwarded(SAID, peer="192.0.2.1", scheme="http", host="gw:8080", trusted=True) == [
        ("X-Forwarded-For", "203.0.113.7, 10.0.0.1, 192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "gw:8080"),
    ]


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ([], None),
        ([("Authorization", "Bearer sk-1")], "sk-1"),
        ([("AUTHORIZATION", " bEaReR   sk-1 ")], "sk-1"),
        ([("X-Api-Key", "a"), ("api-key", "b"), ("authorization", "Bearer c")], "c"),
        ([("api-key", "b"), ("X-Api-Key", "a")], "a"),
        ([("api-key", "b")], "b"),
        ([("Authorization", "Bearer one"), ("Authorization", "Bearer two")], "one"),
        ([("Authorization", "Basic dXNlcjpwYXNz")], None),
        ([("Authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", "a")], "a"),
        ([("Authorization", "Bearer"), ("x-api-key", " ")], None),
        ([("Authorization", "Bearer "), ("api-key", "b")], "b"),
        ([("Authorization", "Bearersk-1")], None),
    ],
)
def test_client_credential_is_found(headers: list[tuple[str, str]], credential: str | None) -> None:
    assert client_credential(headers) == credential


def test_upstream_credentials_are_worded_as_the_protocol_asks() -> None:
    assert upstream_credentials("openai", "k") == ("Authorization", "Bearer k")
    assert upstream_credentials("ollama", "k") == ("Authorization", "Bearer k")
    assert upstream_credentials("anthropic", "k") == ("x-api-key", "k")


@pytest.mark.parametrize("value", ["a", "req_1.2-3", "A" * 128])
def test_request_id_keeps_the_clients_own(value: str) -> None:
    assert request_id(value, lambda: "new") == value


@pytest.mark.parametrize("value", [None, "", "A" * 129, "a b", "a\n", "ü", "a/b", "\udcff", "١"])
def test_request_id_is_a_new_one_where_the_clients_cannot_stand_in_a_log(value: str | None) -> None:
    assert request_id(value, lambda: "new") == "new"


def test_new_request_ids_differ_and_are_ids_themselves() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(made.startswith("req_") and request_id(made, str) == made for made in ids)


@pytest.mark.parametrize("value", [TRACEPARENT, f" {TRACEPARENT} ", TRACEPARENT.replace("00-", "01-", 1) + "-more"])
def test_valid_traceparent_names_its_trace_and_crosses(value: str) -> None:
    headers = [("TraceParent", value), ("tracestate", "vendor=1")]
    assert trace_id(headers) == TRACE
    assert towards_upstream(headers) == headers


@pytest.mark.parametrize(
    "value",
    [
        "",
        "garbage",
        TRACEPARENT + "-more",
        TRACEPARENT[:-1],
        TRACEPARENT.upper(),
        TRACEPARENT.replace("00-", "ff-", 1),
        TRACEPARENT.replace("00-", "01-", 1) + "more",
        TRACEPARENT.replace(TRACE, "0" * 32),
        TRACEPARENT.replace("b7ad6b7169203331", "0" * 16),
    ],
)
def test_invalid_traceparent_does_not_cross_and_takes_its_state_along(value: str) -> None:
    headers = [("traceparent", value), ("tracestate", "vendor=1"), ("A", "1")]
    assert trace_id(headers) is None
    assert towards_upstream(headers) == [("A", "1")]


def test_two_traceparents_are_none() -> None:
    assert trace_id([("traceparent", TRACEPARENT)] * 2) is None


def test_request_head_is_one_line_a_header_and_an_empty_line() -> None:
    head = request_head("POST", "/v1/chat/completions?x=%20", [("Host", "a:1"), ("x-empty", ""), ("x-tab", "a\tb")])
    assert head == b"POST /v1/chat/completions?x=%20 HTTP/1.1\r\nHost: a:1\r\nx-empty: \r\nx-tab: a\tb\r\n\r\n"
    assert request_head("GET", "/", []) == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("raw", ["plain", "ü \N{WATER WAVE}", b"latin \xfc".decode("utf-8", "surrogateescape")])
def test_request_head_gives_back_the_bytes_a_value_came_as(raw: str) -> None:
    value = raw.encode("utf-8", "surrogateescape")
    assert request_head("GET", "/", [("X-A", raw)]) == b"GET / HTTP/1.1\r\nX-A: " + value + b"\r\n\r\n"


@pytest.mark.parametrize("bad", [*map(chr, {*range(0x20)} - {ord("\t")}), "\x7f", "\r\n"])
def test_request_head_refuses_control_characters_in_a_value(bad: str) -> None:
    for value in (f"a{bad}b", f"{bad}", f"ü{bad}Evil: 1"):
        with pytest.raises(ValueError, match="control character"):
            request_head("GET", "/", [("A", "1"), ("X-A", value)])


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "ü", "a\x00", "(a)", " a"])
def test_request_head_refuses_a_name_that_is_no_token(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        request_head("GET", "/", [("A", "1"), (name, "x")])


@pytest.mark.parametrize(
    ("method", "target"),
    [("", "/"), ("GE T", "/"), ("GET\r\n", "/"), ("GET", ""), ("GET", "/a b"), ("GET", "/\r\nX: 1"), ("GET", "/ü")],
)
def test_request_head_refuses_a_method_or_target_that_is_not_one_word(method: str, target: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        request_head(method, target, [("Host", "a")])


def test_request_head_refuses_a_surrogate_that_stands_for_no_byte() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        request_head("GET", "/", [("X-A", "\ud800")])


def test_answer_head_is_one_line_a_header_and_an_empty_line() -> None:
    head = answer_head((1, 1), 200, [("Content-Type", "application/json"), ("X", ""), ("X", "ü")])
    assert head == "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX: \r\nX: ü\r\n\r\n".encode()
    assert answer_head((1, 0), 429, []) == b"HTTP/1.0 429 Too Many Requests\r\n\r\n"
    assert answer_head((1, 1), 599, []) == b"HTTP/1.1 599 \r\n\r\n"


def test_answer_head_gives_back_the_bytes_a_value_came_as() -> None:
    value = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    assert answer_head((1, 1), 200, [("X", value)]) == b"HTTP/1.1 200 OK\r\nX: caf\xe9 \xff\r\n\r\n"


@pytest.mark.parametrize("bad", ["\r", "\n", "\r\n\r\n", "\0", "\x1b", "\x7f"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_answer_head_refuses_control_characters(bad: str, where: str) -> None:
    header = ("X" + bad, "1") if where == "name" else ("X", "1" + bad + "Set-Cookie: a=b")
    with pytest.raises(ValueError, match="control character"):
        answer_head((1, 1), 200, [header])


def test_the_date_is_the_one_of_its_second_in_gmt() -> None:
    assert http_date(784111777.0) == http_date(784111777.999) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert http_date(784111778.0) == "Sun, 06 Nov 1994 08:49:38 GMT"
    assert http_date(784111777.5) == "Sun, 06 Nov 1994 08:49:37 GMT"
