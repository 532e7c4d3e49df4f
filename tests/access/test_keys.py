"""Keys: three ways to write one, one way to find it, nothing to leak."""

from __future__ import annotations

import gc
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.keys import Key, KeyEntry, Keyring

WEB = KeyEntry.from_key("web", "sk-web-1234", ["chat", "embed-*"])
CI = KeyEntry.from_sha256("ci", hashlib.sha256(b"sk-ci-5678").hexdigest())
BATCH = KeyEntry.from_key("batch", "sk-batch-90")


def test_a_key_is_found_by_its_credential_or_its_digest() -> None:
    keyring = Keyring([WEB, CI, BATCH])
    assert keyring.find("sk-web-1234") == Key("web", ("chat", "embed-*"))
    assert keyring.find("sk-ci-5678") == Key("ci")
    assert keyring.find("sk-batch-90") == Key("batch")


@pytest.mark.parametrize(
    "credential", ["", "sk-web-123", "sk-web-12345", "SK-WEB-1234", " sk-web-1234", "sk-web-1234\n"]
)
def test_nearly_the_key_is_not_the_key(credential: str) -> None:
    assert Keyring([WEB, CI, BATCH]).find(credential) is None


def test_no_credential_is_nobody() -> None:
    assert Keyring([WEB]).find(None) is None


def test_a_digest_is_no_credential() -> None:
    assert Keyring([CI]).find(hashlib.sha256(b"sk-ci-5678").hexdigest()) is None


def test_without_keys_the_ring_is_open_and_names_nobody() -> None:
    assert Keyring().open
    assert Keyring().find("anything") is None
    assert not Keyring([WEB]).open


def test_an_upper_case_digest_is_the_same_digest() -> None:
    upper = hashlib.sha256(b"sk-1").hexdigest().upper()
    assert Keyring([KeyEntry.from_sha256("web", upper)]).find("sk-1") == Key("web")


@pytest.mark.parametrize("key", ["clé-ключ-鍵", "\udce9\udcff", "\ud800", "\x00"])
def test_keys_of_any_characters_are_compared_without_raising(key: str) -> None:
    assert Keyring([WEB]).find(key) is None
    assert Keyring([KeyEntry.from_key("odd", key)]).find(key) == Key("odd")


@given(st.text(st.characters(), min_size=1), st.text(st.characters()))
def test_only_the_very_same_text_is_the_key(key: str, credential: str) -> None:
    found = Keyring([KeyEntry.from_key("web", key)]).find(credential)
    assert (found is not None) == (key == credential)


def test_two_equal_keys_count_as_the_first() -> None:
    assert Keyring([KeyEntry.from_key("one", "sk"), KeyEntry.from_key("two", "sk")]).find("sk") == Key("one")


@pytest.mark.parametrize("credential", ["sk-web-1234", "sk-batch-90", "stranger"])
def test_every_digest_is_compared_whoever_asks(credential: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def watched(asked: bytes, configured: bytes) -> bool:
        compared.append(configured)
        return compare(asked, configured)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    Keyring([WEB, CI, BATCH]).find(credential)
    assert compared == [WEB.digest, CI.digest, BATCH.digest]


def test_an_empty_key_would_let_everybody_in_and_is_refused() -> None:
    with pytest.raises(ValueError, match='key "web" is empty'):
        KeyEntry.from_key("web", "")
    with pytest.raises(ValueError, match='key "web" is empty'):
        KeyEntry.from_sha256("web", hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize("digest", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        KeyEntry.from_sha256("web", digest)


def test_printing_shows_names_and_neither_keys_nor_digests() -> None:
    assert repr(Keyring([WEB, CI])) == "Keyring(web, ci)"
    printed = repr(WEB)
    assert "web" in printed
    assert "sk-web-1234" not in printed
    assert WEB.digest.hex() not in printed
    assert repr(WEB.digest) not in printed


def test_a_ring_holds_no_plain_key() -> None:
    key = "sk-" + "canary" * 3
    keyring = Keyring([KeyEntry.from_key("web", key)])
    seen: set[int] = set()
    waiting: list[object] = [keyring]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, type):
            seen.add(id(thing))
            assert thing not in (key, key.encode())
            waiting.extend(gc.get_referents(thing))


@pytest.mark.parametrize(
    ("pattern", "model", "covered"),
    [
        ("*", "anything at all", True),
        ("*", "", True),
        ("chat", "chat", True),
        ("chat", "chat-2", False),
        ("chat", "Chat", False),
        ("embed-*", "embed-large", True),
        ("embed-*", "embed-", True),
        ("embed-*", "my-embed-large", False),
        ("*-mini", "gpt-4o-mini", True),
        ("gpt-*-mini", "gpt-4o-mini", True),
        ("gpt-*-mini", "gpt-mini", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("ab*ba", "aba", False),
        ("a*aa*a", "aaa", False),
        ("a**b", "ab", True),
        ("Qwen/Qwen3[awq]", "Qwen/Qwen3[awq]", True),
        ("Qwen/Qwen3[awq]", "Qwen/Qwen3a", False),
        ("chat?", "chats", False),
        ("embed-*", "embed-\nx", True),
    ],
)
def test_a_pattern_covers_names(pattern: str, model: str, covered: bool) -> None:
    assert Key("web", (pattern,)).may_use(model) is covered


def test_a_key_may_use_what_any_of_its_patterns_covers_and_by_default_everything() -> None:
    assert [model for model in ("chat", "embed-s", "echo") if WEB.key.may_use(model)] == ["chat", "embed-s"]
    assert Key("ci").may_use("echo")
    assert not Key("nothing", ()).may_use("echo")


@given(st.lists(st.tuples(st.text("ab"), st.text("ab"))), st.text("ab"))
def test_a_pattern_covers_whatever_its_stars_are_filled_with(parts: list[tuple[str, str]], last: str) -> None:
    pattern = "".join(f"{piece}*" for piece, _ in parts) + last
    assert Key("web", (pattern,)).may_use("".join(piece + filling for piece, filling in parts) + last)


def test_a_key_of_another_ring_is_what_its_credential_is_here() -> None:
    old = Keyring([KeyEntry.from_key("web", "sk-1"), KeyEntry.from_key("gone", "sk-2")])
    digest = hashlib.sha256(b"sk-1").hexdigest()
    new = Keyring([KeyEntry.from_sha256("renamed", digest, ["chat"]), KeyEntry.from_key("gone", "sk-3")])
    web, gone = old.find("sk-1"), old.find("sk-2")
    assert web is not None
    assert gone is not None
    assert new.current(web) == Key("renamed", ("chat",))
    assert new.current(gone) is None
    assert new.current(Key("gone")) is None
