"""Log lines: what they say, and that nobody can forge one."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.access_log import JsonFormatter, LogFormat, TextFormatter, level, line
from proxy.telemetry.record import EndState, RequestRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_732_277_024.12  # 2024-11-22 12:03:44.120 UTC


@pytest.fixture(autouse=True)
def _on_a_wall_in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def streamed() -> RequestRecord:
    record = RequestRecord(
        "req_9f", "POST", "/v1/chat/completions", 0.0, "sse", trace_id="4bf9", key="web", route="chat"
    )
    record.model, record.replica, record.status, record.attempts = "gpt-4o-mini", 0, 200, 1
    record.events, record.bytes_in, record.bytes_out, record.tokens_in, record.tokens_out = 212, 310, 48_210, 12, 208
    record.mark_first_token(0.132)
    record.finish(EndState.COMPLETED, 4.1)
    return record


def refused(path: str = "/v1/chat/completions", method: str = "POST") -> RequestRecord:
    record = RequestRecord("req_a0", method, path, 0.0, status=401)
    record.finish(EndState.REJECTED, 0.0004)
    return record


def test_a_request_as_json_has_the_documented_members_in_order() -> None:
    assert json.loads(line(streamed(), NOW, "json"), object_pairs_hook=list) == [
        ("ts", "2024-11-22T12:03:44.120Z"),
        ("level", "info"),
        ("event", "request"),
        ("request_id", "req_9f"),
        ("trace_id", "4bf9"),
        ("method", "POST"),
        ("path", "/v1/chat/completions"),
        ("route", "chat"),
        ("model", "gpt-4o-mini"),
        ("replica", 0),
        ("transport", "sse"),
        ("dialect", None),
        ("key", "web"),
        ("status", 200),
        ("end_state", "completed"),
        ("attempts", 1),
        ("queue_ms", 0.0),
        ("ttft_ms", 132.0),
        ("duration_ms", 4100.0),
        ("events", 212),
        ("bytes_in", 310),
        ("bytes_out", 48_210),
        ("tokens_in", 12),
        ("tokens_out", 208),
        ("tokens_estimated", False),
    ]


def test_a_request_as_text_is_one_readable_line() -> None:
    assert line(streamed(), NOW, "text") == (
        "12:03:44.120 POST /v1/chat/completions → chat[0] 200 completed "
        "ttft 132 ms, 4.1 s, 212 events, 12+208 tokens, 48 kB  req_9f"
    )


@pytest.mark.parametrize(
    ("read", "written", "estimated", "told"),
    [
        (31, 212, False, ", 31+212 tokens,"),
        (31, 212, True, ", ~31+212 tokens,"),
        (31, 0, False, ", 31+0 tokens,"),
        (31, None, False, ", 31+? tokens,"),
        (None, 212, False, ", ?+212 tokens,"),
    ],
)
def test_text_tells_tokens_where_they_are_known(
    read: int | None, written: int | None, estimated: bool, told: str
) -> None:
    record = streamed()
    record.tokens_in, record.tokens_out, record.tokens_estimated = read, written, estimated
    assert told in line(record, NOW, "text")


def test_text_says_nothing_of_tokens_that_nobody_counted() -> None:
    record = streamed()
    record.tokens_in = record.tokens_out = None
    assert "tokens" not in line(record, NOW, "text")


def test_text_leaves_out_what_did_not_happen() -> None:
    assert (
        line(refused(), NOW, "text")
        == "12:03:44.120 POST /v1/chat/completions → unknown 401 rejected 0 ms, 0 B  req_a0"
    )


def test_text_tells_of_queues_and_further_attempts() -> None:
    record = RequestRecord("req_b1", "POST", "/v1/embeddings", 0.0, route="embed", replica=1, status=200, attempts=3)
    record.add_queue_time(0.0, 1.25)
    record.bytes_out = 2_345_678
    record.finish(EndState.COMPLETED, 1.5)
    assert line(record, NOW, "text").endswith("embed[1] 200 completed queued 1.2 s, 1.5 s, 2.3 MB, 3 attempts  req_b1")


def test_a_client_that_left_before_a_status_is_a_499() -> None:
    record = RequestRecord("req_c2", "GET", "/v1/ws", 0.0, "ws", "bare")
    record.finish(EndState.CLIENT_CLOSED, 0.5)
    assert "→ unknown 499 client_closed" in line(record, NOW, "text")
    assert '"transport":"ws","dialect":"bare","key":null,"status":499,' in line(record, NOW, "json")


@pytest.mark.parametrize("state", list(EndState))
def test_every_end_has_a_level_that_both_the_line_and_the_logger_know(state: EndState) -> None:
    record = RequestRecord("req_d3", "GET", "/", 0.0, status=200)
    record.finish(state, 1.0)
    assert json.loads(line(record, NOW, "json"))["level"] == logging.getLevelName(level(record)).lower()


def test_what_clients_do_is_info_what_upstreams_do_a_warning_what_we_do_an_error() -> None:
    ends = (EndState.CLIENT_CLOSED, EndState.UPSTREAM_TRUNCATED, EndState.ERROR)
    levels = []
    for end in ends:
        record = RequestRecord("req_e4", "GET", "/", 0.0)
        record.finish(end, 1.0)
        levels.append(level(record))
    assert levels == [logging.INFO, logging.WARNING, logging.ERROR]


FORGERIES = [
    "/v1\n12:03:44.120 POST /forged → chat[0] 200 completed",
    "/v1\r\nforged",
    "/\x1b[2K\x1b[1A",
    "/\x00\x07\x7f\x85",
    "/\u2028forged\u2029",
    "/\u202egnp.exe",
    "/\udcff\ud800",
]


@pytest.mark.parametrize("path", FORGERIES)
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_path_cannot_forge_a_line(path: str, format: LogFormat) -> None:
    for written in (line(refused(path=path), NOW, format), line(refused(method=path), NOW, format)):
        assert written.isprintable()
        assert len(written.splitlines()) == 1
        written.encode()


@pytest.mark.parametrize("path", [*FORGERIES, '/","status":200,"x":"', "/models/größe"])
def test_json_gives_the_path_back_as_it_was(path: str) -> None:
    written = json.loads(line(refused(path=path), NOW, "json"))
    assert (written["path"], written["status"]) == (path, 401)


@given(st.text(st.characters()))
def test_no_path_breaks_out_of_a_text_line(path: str) -> None:
    assert line(refused(path=path), NOW, "text").isprintable()


def test_readable_characters_stay_readable_in_text() -> None:
    assert "POST /models/größe →" in line(refused(path="/models/größe"), NOW, "text")


@pytest.mark.parametrize("now", [0.0, 1.9996, 1_732_277_024.0, 1_732_277_024.9999])
def test_json_times_are_utc_with_milliseconds(now: float) -> None:
    written = json.loads(line(streamed(), now, "json"))["ts"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written)
    assert written.startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(round(now, 3))))


def logged(formatter: logging.Formatter, message: str, *arguments: object, failed: bool = False) -> str:
    """What a logger with this formatter writes for one warning."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter)
    logger = logging.Logger("penstock.reload")
    logger.addHandler(handler)
    if not failed:
        logger.warning(message, *arguments)
        return written.getvalue()
    try:
        raise RuntimeError("cause\n12:00:00.000 INFO forged: line")
    except RuntimeError:
        logger.exception(message, *arguments)
    return written.getvalue()


def test_a_program_line_as_text() -> None:
    written = logged(TextFormatter(), "routes.yaml: %d complaints", 2)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} WARNING penstock\.reload: routes\.yaml: 2 complaints\n", written)


def test_a_program_line_as_json() -> None:
    written = json.loads(logged(JsonFormatter(), "routes.yaml: %d complaints", 2))
    assert list(written) == ["ts", "level", "event", "logger", "message"]
    assert (written["level"], written["event"]) == ("warning", "log")
    assert (written["logger"], written["message"]) == ("penstock.reload", "routes.yaml: 2 complaints")


def test_a_traceback_is_kept_in_one_json_line() -> None:
    written = logged(JsonFormatter(), "reload failed", failed=True)
    assert written.count("\n") == 1
    assert written.isascii()
    traceback = json.loads(written)["traceback"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: cause" in traceback


def test_a_traceback_is_indented_below_its_text_line_so_that_it_forges_none() -> None:
    head, *below = logged(TextFormatter(), "reload failed", failed=True).splitlines()
    assert head.endswith("ERROR penstock.reload: reload failed")
    assert "    RuntimeError: cause" in below
    assert "    12:00:00.000 INFO forged: line" in below
    assert all(part.startswith("    ") for part in below)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_message_cannot_forge_a_line(formatter: logging.Formatter) -> None:
    for forgery in FORGERIES:
        written = logged(formatter, "asked for %s", forgery)
        assert written.endswith("\n")
        assert written[:-1].isprintable()


def test_logging_without_an_exception_leaves_no_traceback() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "fine", (), (None, None, None))
    assert "traceback" not in json.loads(JsonFormatter().format(record))
    assert TextFormatter().format(record).endswith("INFO a: fine")


def test_a_stack_that_was_asked_for_is_kept() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "here", (), None)
    record.stack_info = "Stack (most recent call last):\n  here"
    assert json.loads(JsonFormatter().format(record))["traceback"] == record.stack_info


@pytest.mark.parametrize(("times", "text"), [(1, "2 attempts, continued"), (2, "2 attempts, continued 2 times")])
def test_an_answer_that_went_on_elsewhere_is_told(times: int, text: str) -> None:
    record = RequestRecord("req_c1", "POST", "/v1/chat/completions", 0.0, route="chat", attempts=2, continued=times)
    record.finish(EndState.COMPLETED, 1.0)
    assert text in line(record, NOW, "text")
    assert json.loads(line(record, NOW, "json"))["continued"] == times


def test_an_answer_that_did_not_is_not() -> None:
    record = RequestRecord("req_c2", "POST", "/v1/chat/completions", 0.0)
    record.finish(EndState.COMPLETED, 1.0)
    assert "continued" not in line(record, NOW, "text")
    assert "continued" not in json.loads(line(record, NOW, "json"))
