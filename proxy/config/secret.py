"""Settings that must never be seen: keys, header values, addresses that may carry a password.

A Secret prints as `***` in str, repr and JSON; `get_secret_value()` gives it away.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, SecretStr

from proxy.config.addresses import parse_redis_url, parse_tool_url
from proxy.config.settings import Kind
from proxy.config.units import parse_text

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*", re.ASCII)
_WRITTEN_BY_US = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "upgrade", "te")
)


class Secret(SecretStr):
    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret('***')"


def parse_header_name(value: object) -> str:
    """A field name of RFC 9110, as it was written, that a configuration may set."""
    name = parse_text(value)
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("is not a valid header name")
    if name.lower() in _WRITTEN_BY_US:
        raise ValueError("is a header that the gateway writes itself")
    return name


def parse_header_value(value: object) -> Secret:
    """Text that fits into a header, so that nobody can start a second one with it."""
    text = parse_text(value)
    if not _HEADER_VALUE.fullmatch(text) or text != text.strip():
        raise ValueError("has characters that a header cannot carry (perhaps a line break at its end)")
    return Secret(text)


def parse_api_key(value: object) -> Secret | None:
    """A replica's or the admin key; an empty one, from an unset variable, is no key."""
    secret = parse_header_value(value)
    return secret if secret.get_secret_value() else None


def parse_client_key(value: object) -> Secret:
    """A key that clients must show. Never empty: that would let everybody in."""
    text = parse_text(value)
    if not text:
        raise ValueError("is empty")
    if text != text.strip():
        raise ValueError("begins or ends with a blank or a line break, which no client can send")
    return Secret(text)


def parse_digest(value: object) -> str:
    """The SHA-256 of a key, lower case."""
    digest = parse_text(value).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("must be the 64 hexadecimal digits that sha256sum prints")
    return digest


def parse_variable_value(value: object) -> Secret:
    """A value for a tool server's environment."""
    text = parse_text(value)
    if "\0" in text:
        raise ValueError("has a character that an environment cannot hold")
    return Secret(text)


def parse_state(value: object) -> Secret | None:
    """None for `memory`, else the address of a Redis."""
    return None if value == "memory" else Secret(parse_redis_url(value))


def parse_secret_url(value: object) -> Secret:
    return Secret(parse_tool_url(value))


def _different_names(headers: dict[str, Secret]) -> dict[str, Secret]:
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("has the same header twice, in different spellings")
    return headers


def _mask(secret: Secret | None) -> str | None:
    return None if secret is None else str(secret)


def _mask_state(state: Secret | None) -> str:
    return "memory" if state is None else str(state)


_TEXT: dict[str, Any] = {"type": "string"}
_HTTP: dict[str, Any] = {"type": "string", "pattern": "^https?://"}
_STATE: dict[str, Any] = {"anyOf": [{"const": "memory"}, {"type": "string", "pattern": "^rediss?://"}]}
_DIGEST: dict[str, Any] = {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"}

ApiKey = Annotated[Secret | None, Kind(parse_api_key, _TEXT, _mask)]
ClientKey = Annotated[Secret, Kind(parse_client_key, _TEXT)]
Digest = Annotated[str, Kind(parse_digest, _DIGEST)]
HeaderName = Annotated[str, Kind(parse_header_name, _TEXT)]
HeaderValue = Annotated[Secret, Kind(parse_header_value, _TEXT)]
Headers = Annotated[dict[HeaderName, HeaderValue], AfterValidator(_different_names)]
VariableValue = Annotated[Secret, Kind(parse_variable_value, _TEXT)]
ToolUrl = Annotated[Secret, Kind(parse_secret_url, _HTTP)]
State = Annotated[Secret | None, Kind(parse_state, _STATE, _mask_state)]
