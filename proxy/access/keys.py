"""Who is asking: the configured keys, and which of them a credential is.

This room holds digests and names, never a key. Reading key files belongs to the loader, finding the credential in a
request's headers to `wire.headers`, turning "no such key" into a 401 to the relay.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.config.model import AuthKey

EVERY_MODEL = ("*",)
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """One configured key as the rest of the gateway knows it: its name (for logs) and the models it may use.

    `models` are exact names or patterns in which `*` stands for any text: `chat`, `embed-*`. `digest` is its
    credential's.
    """

    name: str
    models: tuple[str, ...] = EVERY_MODEL
    digest: bytes = field(default=b"", repr=False, compare=False)

    def may_use(self, model: str) -> bool:
        """Whether one of the key's patterns covers `model`, a route's name or an alias; case counts."""
        return any(_covers(pattern, model) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key with the SHA-256 digest of its credential; made from either. What a key file holds is the loader's to read.

    Raises `ValueError` for an empty key or a digest that is not one: such an entry would let everybody in, or nobody.
    """

    key: Key
    digest: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.digest) != _DIGEST_BYTES:
            raise ValueError(f'key "{self.key.name}": a SHA-256 digest has 64 hexadecimal digits')
        if self.digest == _digest(""):
            raise ValueError(f'key "{self.key.name}" is empty')

    @classmethod
    def from_key(cls, name: str, key: str, models: Iterable[str] = EVERY_MODEL) -> KeyEntry:
        """`key: sk-…`: the credential itself, forgotten once it is digested."""
        digest = _digest(key)
        return cls(Key(name, tuple(models), digest), digest)

    @classmethod
    def from_sha256(cls, name: str, hex_digest: str, models: Iterable[str] = EVERY_MODEL) -> KeyEntry:
        """`key_sha256: 9f86d0…`: the hexadecimal digest of the credential."""
        try:
            digest = bytes.fromhex(hex_digest)
        except ValueError:
            digest = b""
        return cls(Key(name, tuple(models), digest), digest)


class Keyring:
    """All configured keys. Immutable: a reload builds another one."""

    __slots__ = ("_by_digest", "_entries")

    def __init__(self, entries: Iterable[KeyEntry] = ()) -> None:
        self._entries = tuple((entry.digest, entry.key) for entry in entries)
        self._by_digest = dict(reversed(self._entries))

    @classmethod
    def of(cls, keys: Iterable[AuthKey]) -> Keyring:
        """The configuration's keys. Raises as `AuthKey.digest`."""
        return cls(KeyEntry.from_sha256(key.name, key.digest(), key.models) for key in keys)

    @property
    def open(self) -> bool:
        """No keys are configured: everybody may, and `find` has nobody to name."""
        return not self._entries

    def find(self, credential: str | None) -> Key | None:
        """The key this credential is, or None. It takes as long for a near miss as for any other text.

        Any text may be asked for, surrogates (header bytes that were not UTF-8) too. Of two equals the first counts.
        """
        if credential is None:
            return None
        digest = _digest(credential)
        found: Key | None = None
        for configured, key in self._entries:  # no early exit: the time must not tell the position
            if hmac.compare_digest(digest, configured) and found is None:
                found = key
        return found

    def current(self, key: Key) -> Key | None:
        """What a key that was found in another ring is in this one: None where its credential is no longer good."""
        return self._by_digest.get(key.digest)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(key.name for _, key in self._entries)})"


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()


def _covers(pattern: str, model: str) -> bool:
    """Match with `*` as the only wildcard, without backtracking; `fnmatch` reads brackets in a name as a class."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == model
    *middle, last = rest
    if not model.startswith(first) or not model.endswith(last):
        return False
    at, end = len(first), len(model) - len(last)
    for piece in middle:
        found = model.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return at <= end
