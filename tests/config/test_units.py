import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import units

any_example = settings(derandomize=True, database=None, deadline=None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("1.5s", 1.5), ("0s", 0.0), ("0", 0.0), (0, 0.0)],
)
def test_duration_is_read_in_seconds(text: object, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (5, "has no unit"),
        ("5", "has no unit"),
        (1.5, "has no unit"),
        ("5 s", "write a duration"),
        ("-5s", "write a duration"),
        ("5d", "unknown unit"),
        ("5S", "unknown unit"),
        ("1h30m", "write a duration"),
        ("", "write a duration"),
        (True, "write a duration"),
        (False, "write a duration"),
        (None, "write a duration"),
        ([], "write a duration"),
        ("none", "cannot be"),
        ("9" * 400 + "h", "write a duration"),
        ("99999h", "longer than a year"),
        ("٥s", "write a duration"),
    ],
)
def test_what_is_no_duration_is_refused_with_a_hint(value: object, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        units.parse_duration(value)


def test_none_is_a_duration_only_where_it_is_allowed() -> None:
    assert units.parse_duration_or_none("none") is None
    assert units.parse_duration_or_none("5s") == 5.0
    with pytest.raises(ValueError, match=r"or none$"):
        units.parse_duration_or_none("5")


@any_example
@given(st.integers(0, 366 * 24 * 3600 * 1000))
def test_printed_duration_reads_back_as_it_was(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (5.0, "5s"), (90.0, "90s"), (120.0, "2m"), (7200.0, "2h"), (0.0, "0s"), (0.0005, "0.5ms")],
)
def test_duration_is_printed_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


def test_no_duration_is_printed_as_none() -> None:
    assert units.format_duration(None) == "none"


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        ("64KiB", 65536), ("32MiB", 33554432), ("1GiB", 1 << 30), ("1kB", 1000), ("1KB", 1000), ("2MB", 2_000_000),
        ("1GB", 10**9), ("7B", 7), ("4096", 4096), (4096, 4096), ("0.5KiB", 512),
    ],
)  # fmt: skip
def test_size_is_read_in_bytes(value: object, size_bytes: int) -> None:
    assert units.parse_size(value) == size_bytes


@pytest.mark.parametrize("value", ["32M", "32mib", "", "-1", 0, "0", "0.3KiB", 1.5, True, None, [], "9" * 30 + "GiB"])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"write a size|unknown unit|at least one byte|whole number|too large"):
        units.parse_size(value)


@any_example
@given(st.integers(1, 1 << 50))
def test_printed_size_reads_back_as_it_was(size_bytes: int) -> None:
    assert units.parse_size(units.format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(("value", "count"), [(3, 3), ("8080", 8080), (-1, -1), ("0", 0)])
def test_count_may_be_given_as_text(value: object, count: int) -> None:
    assert units.parse_count(value) == count


@pytest.mark.parametrize("value", [True, 1.0, "1.0", "", "x", "-1", " 1", None, [], "9" * 19, "٣"])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        units.parse_count(value)


@pytest.mark.parametrize(
    ("value", "on"),
    [(True, True), (False, False), ("on", True), ("off", False), ("yes", True), ("No", False), ("TRUE", True)],
)
def test_switch_understands_the_words_people_use(value: object, on: bool) -> None:
    assert units.parse_switch(value) is on


@pytest.mark.parametrize("value", [1, 0, "1", "", "maybe", None])
def test_switch_refuses_other_words(value: object) -> None:
    with pytest.raises(ValueError, match="true or false"):
        units.parse_switch(value)


def test_number_is_not_taken_for_text() -> None:
    assert units.parse_text("1.10") == "1.10"
    with pytest.raises(ValueError, match="quotes"):
        units.parse_text(1.1)
    with pytest.raises(ValueError, match=r"^must be text$"):
        units.parse_text(["x"])
