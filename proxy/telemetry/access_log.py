"""Log lines: the one each request leaves at its end, and the shape of the program's other ones; as text or as JSON.

Nothing a client sent can end a line or move a terminal's cursor. When and where lines are written is the recorder's.
"""

from __future__ import annotations

import json
import logging
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, assert_never

from proxy.telemetry.record import EndState

if TYPE_CHECKING:
    from proxy.telemetry.record import RequestRecord

LogFormat = Literal["text", "json"]

# Escapes everything but printable ASCII, so that no line end, U+2028 or lone surrogate reaches the log.
_encode: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode

_LEVELS: Final = {
    EndState.COMPLETED: logging.INFO,
    EndState.CLIENT_CLOSED: logging.INFO,
    EndState.REJECTED: logging.INFO,
    EndState.UPSTREAM_REJECTED: logging.INFO,
    EndState.SHED: logging.WARNING,
    EndState.UPSTREAM_ERROR: logging.WARNING,
    EndState.UPSTREAM_TRUNCATED: logging.WARNING,
    EndState.UPSTREAM_IDLE: logging.WARNING,
    EndState.FIRST_TOKEN_TIMEOUT: logging.WARNING,
    EndState.DRAINED: logging.WARNING,
    EndState.ERROR: logging.ERROR,
}
_LEVEL_NAMES: Final = {level: logging.getLevelName(level).lower() for level in _LEVELS.values()}


def level(record: RequestRecord) -> int:
    """How loud a request's line is: INFO for what clients do, WARNING for what operators should see, ERROR for bugs."""
    return _LEVELS[record.end_state] if record.end_state else logging.ERROR


def line(record: RequestRecord, now_wall: float, format: LogFormat) -> str:
    """The finished record as one line, without its line end. `now_wall`: seconds since the epoch."""
    match format:
        case "json":
            return _json_line(record, now_wall)
        case "text":
            return _text_line(record, now_wall)
        case _:
            assert_never(format)


def _json_line(record: RequestRecord, now_wall: float) -> str:
    """The members and their order are http.md's ("Metrics and log")."""
    return _encode(
        {
            "ts": _utc(now_wall),
            "level": _LEVEL_NAMES[level(record)],
            "event": "request",
            "request_id": record.request_id,
            "trace_id": record.trace_id,
            "method": record.method,
            "path": record.path,
            "route": record.route,
            "model": record.model,
            "replica": record.replica,
            "transport": record.transport,
            "dialect": record.dialect,
            "key": record.key,
            "status": record.status,
            "end_state": record.end_state,
            "attempts": record.attempts,
            "queue_ms": record.queue_ms,
            "ttft_ms": record.ttft_ms,
            "duration_ms": record.duration_ms,
            "events": record.events,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "tokens_in": record.tokens_in,
            "tokens_out": record.tokens_out,
            "tokens_estimated": record.tokens_estimated,
            **({"continued": record.continued} if record.continued else {}),
        }
    )


def _text_line(record: RequestRecord, now_wall: float) -> str:
    where = record.route if record.replica is None else f"{record.route}[{record.replica}]"
    head = f"{_local(now_wall)} {printable(record.method)} {printable(record.path)} → {where}"
    return f"{head} {record.status or '-'} {record.end_state} {_figures(record)}  {record.request_id}"


def _figures(record: RequestRecord) -> str:
    """`queued 20 ms, ttft 132 ms, 4.1 s, 212 events, 31+208 tokens, 48 kB, 3 attempts`: what is zero, usual or unknown
    is left out."""
    figures = []
    if record.queue_ms >= 1:
        figures.append(f"queued {_duration(record.queue_ms)}")
    if record.ttft_ms is not None:
        figures.append(f"ttft {_duration(record.ttft_ms)}")
    figures.append(_duration(record.duration_ms or 0.0))
    if record.events:
        figures.append(f"{record.events} events")
    if record.tokens_in is not None or record.tokens_out is not None:
        figures.append(_tokens(record))
    figures.append(_size(record.bytes_out))
    if record.attempts > 1:
        figures.append(f"{record.attempts} attempts")
    if record.continued:
        figures.append("continued" if record.continued == 1 else f"continued {record.continued} times")
    return ", ".join(figures)


def _tokens(record: RequestRecord) -> str:
    """`31+208 tokens`, read and written; `~` where estimated, `?` for the one that is not known."""
    read, written = ("?" if count is None else count for count in (record.tokens_in, record.tokens_out))
    return f"{'~' if record.tokens_estimated else ''}{read}+{written} tokens"


def _duration(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 999.5 else f"{ms / 1000:.1f} s"


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    return f"{size_bytes / 1000:.0f} kB" if size_bytes < 999_500 else f"{size_bytes / 1e6:.1f} MB"


def _utc(now_wall: float) -> str:
    """RFC 3339 with milliseconds: what machines compare."""
    second, ms = divmod(round(now_wall * 1000), 1000)
    return f"{_utc_second(second)}.{ms:03d}Z"


def _local(now_wall: float) -> str:
    """The time on the reader's own wall."""
    second, ms = divmod(round(now_wall * 1000), 1000)
    return f"{_local_second(second)}.{ms:03d}"


@lru_cache(maxsize=1)  # a busy gateway writes hundreds of lines within one second
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=1)
def _local_second(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


def printable(text: str) -> str:
    """The text with what is not printable (control characters, line ends, bidi marks, surrogates) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class JsonFormatter(logging.Formatter):
    """The program's own log lines as JSON, one line each; a traceback is one member more."""

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "ts": _utc(record.created),
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if traceback := _traceback(self, record):
            members["traceback"] = traceback
        return _encode(members)


class TextFormatter(logging.Formatter):
    """The program's own log lines for people: `12:03:44.120 WARNING reload: …`, a traceback indented below."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_local(record.created)} {record.levelname} {record.name}: {printable(record.getMessage())}"
        # Indented, so that no line of an exception's text can pass for a line of the log.
        return "\n".join([head, *(f"    {printable(part)}" for part in _traceback(self, record).splitlines())])


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
