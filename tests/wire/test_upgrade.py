"""The handshake, with the RFC's own example and what a server may get wrong."""

from __future__ import annotations

import pytest

from proxy.wire.upgrade import BadUpgrade, handshake_key, selected_subprotocol, upgrade_headers

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
GOOD = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}


def answer(**changes: str | None) -> list[tuple[str, str]]:
    """A good 101's headers with some of them changed, or (None) gone."""
    headers = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return [(name, value) for name, value in headers.items() if value is not None]


def test_the_key_is_sixteen_bytes_in_base64() -> None:
    assert handshake_key(b"the sample nonce") == KEY


def test_an_upgrade_offers_its_subprotocols_and_no_extension() -> None:
    assert upgrade_headers(KEY, ()) == [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ]
    assert upgrade_headers(KEY, ("realtime", "v2"))[-1] == ("Sec-WebSocket-Protocol", "realtime, v2")


def test_a_good_answer_selects_an_offered_subprotocol_or_none() -> None:
    assert selected_subprotocol(answer(), KEY, ()) is None
    assert selected_subprotocol(answer(), KEY, ("a",)) is None
    assert selected_subprotocol(answer(sec_websocket_protocol="b"), KEY, ("a", "b")) == "b"


def test_names_and_tokens_may_be_written_in_any_case_among_others() -> None:
    said = [("UPGRADE", "WebSocket"), ("connection", "keep-alive, Upgrade"), ("sec-websocket-accept", f" {ACCEPT} ")]
    assert selected_subprotocol(said, KEY, ()) is None


BAD: dict[str, dict[str, str | None]] = {
    "no upgrade": {"Upgrade": None},
    "another upgrade": {"Upgrade": "h2c"},
    "no connection": {"Connection": None},
    "another connection": {"Connection": "close"},
    "no key": {"Sec-WebSocket-Accept": None},
    "another key": {"Sec-WebSocket-Accept": KEY},
    "an extension": {"Sec_WebSocket_Extensions": "permessage-deflate"},
    "a subprotocol nobody offered": {"Sec_WebSocket_Protocol": "c"},
    "two subprotocols": {"Sec_WebSocket_Protocol": "a, b"},
}


@pytest.mark.parametrize("case", BAD)
def test_a_101_that_does_not_follow_is_noticed(case: str) -> None:
    with pytest.raises(BadUpgrade):
        selected_subprotocol(answer(**BAD[case]), KEY, ("a", "b"))


def test_a_subprotocol_selected_twice_is_noticed() -> None:
    with pytest.raises(BadUpgrade):
        selected_subprotocol([*answer(Sec_WebSocket_Protocol="a"), ("sec-websocket-protocol", "a")], KEY, ("a",))
