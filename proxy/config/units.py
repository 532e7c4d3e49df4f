"""How the file writes quantities: durations, sizes, counts, switches; reading and printing them.

Every parser takes whatever YAML gave and raises ValueError with a sentence for the operator. No sentence repeats the
value, because it may have come from a variable.
"""

import re

LONGEST_S = 366 * 24 * 3600.0
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(B|kB|KB|MB|GB|KiB|MiB|GiB)?$"

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}
_UNITS_BYTES = {
    "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "GB": 10**9, "MB": 10**6, "kB": 1000, "KB": 1000, "B": 1, "": 1,
}  # fmt: skip
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", re.ASCII)

_DURATION_HINT = "write a duration such as 250ms, 5s, 2m or 1h"
_SIZE_HINT = "write a size such as 64KiB or 32MiB, or a number of bytes"


def parse_duration(value: object) -> float:
    """Seconds of `250ms`, `5s`, `2m`, `1h`; a bare 0 needs no unit."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0.0
    if value == "none":
        raise ValueError(f'cannot be "none"; {_DURATION_HINT}')
    number, unit = _split(value, _DURATION_HINT)
    if not unit:
        raise ValueError(f"has no unit; {_DURATION_HINT}")
    if unit == "ms":
        seconds = number / 1000
    elif unit in _UNITS_S:
        seconds = number * _UNITS_S[unit]
    else:
        raise ValueError(f"has an unknown unit; {_DURATION_HINT}")
    if seconds > LONGEST_S:
        raise ValueError('is longer than a year; write "none" if there is to be no limit')
    return seconds


def parse_duration_or_none(value: object) -> float | None:
    """Like `parse_duration`, and None for the word `none`: no limit, or turned off."""
    if value == "none":
        return None
    try:
        return parse_duration(value)
    except ValueError as exc:
        raise ValueError(f"{exc}, or none" if str(exc).endswith("1h") else str(exc)) from None


def format_duration(seconds: float | None) -> str:
    """The shortest exact way to write it: 0.25 is `250ms`, 120.0 is `2m`, None is `none`."""
    if seconds is None:
        return "none"
    for unit, length_s in _UNITS_S.items():
        if seconds >= length_s and seconds % length_s == 0:
            return f"{int(seconds // length_s)}{unit}"
    return "0s" if seconds == 0 else f"{round(seconds * 1000, 6):f}".rstrip("0").rstrip(".") + "ms"


def parse_size(value: object) -> int:
    """Bytes of `64KiB`, `32MiB`, `1GB` or a plain number; at least one."""
    number, unit = _split(value, _SIZE_HINT)
    if unit not in _UNITS_BYTES:
        raise ValueError(f"has an unknown unit; {_SIZE_HINT}")
    size_bytes = number * _UNITS_BYTES[unit]
    if not 1 <= size_bytes < 1 << 62:
        raise ValueError("must be at least one byte" if size_bytes < 1 else "is too large")
    if size_bytes != int(size_bytes):
        raise ValueError("is not a whole number of bytes")
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """The largest binary unit that divides it: 33554432 is `32MiB`, 1000 is `1000`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes % _UNITS_BYTES[unit] == 0:
            return f"{size_bytes // _UNITS_BYTES[unit]}{unit}"
    return str(size_bytes)


def parse_count(value: object) -> int:
    """A whole number, also as text (a variable's value is text); its bounds are the setting's business."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
        return int(value)
    raise ValueError("must be a whole number")


def parse_switch(value: object) -> bool:
    """true or false; on/off and yes/no are understood too."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    raise ValueError("must be true or false")


def parse_text(value: object) -> str:
    """Text. A number is not taken for it: YAML may have changed its spelling (1.10 is 1.1)."""
    if isinstance(value, str):
        return value
    raise ValueError("must be text; put quotes around it" if isinstance(value, bool | int | float) else "must be text")


def _split(value: object, hint: str) -> tuple[float, str]:
    """The number and the letters after it. The number is bounded in length: it always fits a float."""
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    match = _NUMBER_AND_UNIT.fullmatch(text) if isinstance(text, str) and len(text) <= 32 else None
    if match is None:
        raise ValueError(hint)
    return float(match[1]), match[2]
