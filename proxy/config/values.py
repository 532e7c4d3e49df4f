"""The kinds of value a setting can have: each joins a parser, a JSON Schema and a printer under one name.

What stands in the text is read by `units` and `addresses`; what must not be shown is in `secret`.
"""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from proxy.config import addresses, units
from proxy.config.secret import parse_header_name
from proxy.config.settings import Kind, OrNone

Method = Literal["least_busy", "round_robin", "random", "sticky", "prefix"]


class Balance(NamedTuple):
    """How a replica is chosen; `by` (and `header`) say what keeps to its replica under `sticky`."""

    method: Method = "least_busy"
    by: Literal["session", "key", "user", "header"] = "session"
    header: str | None = None


def parse_balance(value: object) -> Balance:
    """A method's name, or `{sticky: key}`, `{sticky: user}`, `{sticky: {header: X-Session}}`; `sticky` alone is by
    session: what the client calls one, else its user, else its key."""
    match value:
        case "least_busy" | "round_robin" | "random" | "sticky" | "prefix":
            return Balance(value)
        case {"sticky": "key" | "user" as by, **rest} if not rest:
            return Balance("sticky", by)
        case {"sticky": {"header": name, **others}, **rest} if not rest and not others:
            return Balance("sticky", "header", parse_header_name(name))
    raise ValueError(
        "must be least_busy, round_robin, random, sticky or prefix; "
        "or {sticky: key}, {sticky: user}, {sticky: {header: X-Session}}"
    )


def parse_positive(value: object) -> int:
    """A whole number from 1."""
    if (count := units.parse_count(value)) < 1:
        raise ValueError("must be at least 1")
    return count


def parse_number(value: object) -> int:
    """A whole number from 0."""
    if (count := units.parse_count(value)) < 0:
        raise ValueError("must be at least 0")
    return count


def parse_time(value: object) -> float:
    """A duration longer than nothing."""
    if (time_s := units.parse_duration(value)) == 0:
        raise ValueError("must be longer than 0s")
    return time_s


def parse_time_or_none(value: object) -> float | None:
    if (time_s := units.parse_duration_or_none(value)) == 0:
        raise ValueError("must be longer than 0s; none turns it off")
    return time_s


def parse_port(value: object) -> int:
    """A port to listen on; 0 stands for a free one."""
    if not 0 <= (port := units.parse_count(value)) <= 65535:
        raise ValueError("must be a port from 0 to 65535")
    return port


def parse_gather(value: object) -> float | Literal["off", "auto"]:
    """`off`, `auto`, or how long a busy loop may wait for more sockets, in seconds."""
    if value == "off" or value is False:
        return "off"
    if value == "auto":
        return "auto"
    try:
        gather_s = units.parse_duration(value)
    except ValueError:
        raise ValueError("must be off, auto or a duration such as 2ms") from None
    if gather_s > 1:
        raise ValueError("must be at most 1s")
    return gather_s


def parse_on_disconnect(value: object) -> float | None:
    """None for `cancel`; for `{keep: 30s}`, how long to go on."""
    if value == "cancel":
        return None
    if isinstance(value, dict) and list(value) == ["keep"]:
        return units.parse_duration(value["keep"])
    raise ValueError("must be cancel or {keep: 30s}")


def parse_file(value: object, folder: Path | None) -> Path:
    """A file's path; a relative one counts from `folder`, where the configuration stands."""
    text = units.parse_text(value)
    if not text or "\0" in text:
        raise ValueError("must name a file")
    return Path(folder or "", text)


def parse_name(value: object) -> str:
    """A name that can stand in a log line, a header and a metric."""
    text = units.parse_text(value)
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("must be a name: some text without control characters, not beginning or ending with a blank")
    return text


def parse_model(value: object) -> str:
    """A model's name on its server; empty when its variable is unset, which means that it is not configured."""
    return parse_name(value) if value != "" else ""


def parse_path(value: object) -> str:
    """A path on a replica, such as /health."""
    text = units.parse_text(value)
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text or "#" in text:
        raise ValueError("must be a path that begins with /")
    return text


def _show_balance(balance: Balance) -> object:
    if balance.method != "sticky" or balance.by == "session":
        return balance.method
    return {"sticky": {"header": balance.header} if balance.by == "header" else balance.by}


def _show_gather(gather: float | str) -> str:
    return gather if isinstance(gather, str) else units.format_duration(gather)


def _show_on_disconnect(keep_s: float | None) -> object:
    return "cancel" if keep_s is None else {"keep": units.format_duration(keep_s)}


def _show_unless_none(value: object) -> str | None:
    return None if value is None else str(value)


def _closed(**members: Any) -> dict[str, Any]:
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"type": "string", "pattern": units.DURATION_PATTERN}
_TIME_OR_NONE: dict[str, Any] = {"anyOf": [_TIME, {"const": "none"}]}
_WORD_SIZE: dict[str, Any] = {"type": "string", "pattern": units.SIZE_PATTERN}
_BYTES: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 1}, _WORD_SIZE]}
_OFF_AUTO: dict[str, Any] = {"enum": ["off", "auto"]}
_ON_OFF: dict[str, Any] = {"anyOf": [{"type": "boolean"}, {"enum": ["yes", "no", "on", "off"]}]}
_STICKY: dict[str, Any] = {"anyOf": [{"enum": ["key", "user"]}, _closed(header=_TEXT)]}
_METHODS: dict[str, Any] = {"enum": ["least_busy", "round_robin", "random", "sticky", "prefix"]}
_URL: dict[str, Any] = {"type": "string", "pattern": "^(https?|demo)://"}


def _or(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(choices)}


# A Duration is longer than nothing; a Wait may be 0s, which means not at all.
Duration = Annotated[float, Kind(parse_time, _TIME, units.format_duration)]
DurationOrNone = Annotated[float | None, Kind(parse_time_or_none, _TIME_OR_NONE, units.format_duration)]
Wait = Annotated[float, Kind(units.parse_duration, _TIME, units.format_duration)]
WaitOrNone = Annotated[float | None, Kind(units.parse_duration_or_none, _TIME_OR_NONE, units.format_duration)]
Size = Annotated[int, Kind(units.parse_size, _BYTES, units.format_size)]
Count = Annotated[int, Kind(parse_positive, {"type": "integer", "minimum": 1}, int)]
CountOrZero = Annotated[int, Kind(parse_number, {"type": "integer", "minimum": 0}, int)]
Port = Annotated[int, Kind(parse_port, {"type": "integer", "minimum": 0, "maximum": 65535}, int)]
Switch = Annotated[bool, Kind(units.parse_switch, _ON_OFF, bool)]
Name = Annotated[str, Kind(parse_name, _TEXT)]
ModelName = Annotated[str, Kind(parse_model, _TEXT)]
File = Annotated[Path, Kind(parse_file, _TEXT, str, beside_file=True)]
UrlPath = Annotated[str, Kind(parse_path, {"type": "string", "pattern": "^/"})]

BindHost = Annotated[str, Kind(addresses.parse_bind_host, _TEXT)]
Listen = Annotated[addresses.Address | None, Kind(addresses.parse_listen_or_none, _TEXT, _show_unless_none)]
AllowedHost = Annotated[str, Kind(addresses.parse_allowed_host, _TEXT)]
Origin = Annotated[str, Kind(addresses.parse_origin, _TEXT)]
Network = Annotated[IPv4Network | IPv6Network, Kind(addresses.parse_network, _TEXT)]
ReplicaUrl = Annotated[str, Kind(addresses.parse_replica_url, _URL)]

BalanceSetting = Annotated[Balance, Kind(parse_balance, _or(_METHODS, _closed(sticky=_STICKY)), _show_balance)]
Gather = Annotated[float | Literal["off", "auto"], Kind(parse_gather, _or(_OFF_AUTO, _TIME), _show_gather)]
OnDisconnect = Annotated[
    float | None, Kind(parse_on_disconnect, _or({"const": "cancel"}, _closed(keep=_TIME)), _show_on_disconnect)
]
CountOrNone = Annotated[Count | None, OrNone()]
