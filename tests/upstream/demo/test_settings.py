import pytest

from proxy.upstream.demo.settings import DemoSettings


def test_nothing_said_means_a_fitting_length_at_a_readable_pace() -> None:
    assert DemoSettings.parse("demo://") == DemoSettings(tokens=None, interval_s=0.02, first_s=0.1)


def test_the_query_sets_length_and_timing() -> None:
    read = DemoSettings.parse("demo://?tokens=200&interval=5ms&first=1.5s")
    assert read == DemoSettings(tokens=200, interval_s=0.005, first_s=1.5)


def test_what_is_left_out_keeps_its_default() -> None:
    assert DemoSettings.parse("demo://?interval=0ms") == DemoSettings(interval_s=0.0)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("tokens=0", "from 1 to"),
        ("tokens=-1", "tokens in demo://"),
        ("tokens=many", "tokens in demo://"),
        ("tokens=", "tokens in demo://"),
        ("tokens=٣", "tokens in demo://"),
        ("tokens=1000001", "from 1 to"),
        ("interval=20", "interval in demo://"),
        ("interval=none", "interval in demo://"),
        ("first=soon", "first in demo://"),
        ("token=3", "knows no 'token'"),
        ("tokens=3&tokens=4", "once"),
    ],
)
def test_a_wrong_query_is_a_value_error_that_says_what_may_stand_there(query: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DemoSettings.parse(f"demo://?{query}")


def test_an_answer_lasts_until_its_last_token() -> None:
    settings = DemoSettings(interval_s=0.5, first_s=2.0)
    assert [settings.duration_s(tokens) for tokens in (0, 1, 3)] == [2.0, 2.0, 3.0]
