import pytest

from proxy.config.complaints import Complaint, ConfigError, Finding, Place, complain, spell


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ((), ""),
        (("routes", "chat", "replicas", 1, "url"), "routes.chat.replicas[1].url"),
        (("routes", "Qwen/Qwen3-32B"), "routes.Qwen/Qwen3-32B"),
        (("routes", "gpt-4.1", "model"), 'routes["gpt-4.1"].model'),
        (("routes", "a b"), 'routes["a b"]'),
        (("routes", "größe"), 'routes["größe"]'),
        (("routes", "a\nb\x1b"), 'routes["a\\nb\\u001b"]'),
        (("routes", "x" * 200 + "!"), f'routes["{"x" * 80}"]'),
    ],
)
def test_place_reads_as_a_path(place: Place, text: str) -> None:
    assert spell(place) == text


def test_complaint_prints_file_line_and_place() -> None:
    assert str(Complaint("routes.yaml", 14, "routes.chat", "is wrong")) == "routes.yaml:14: routes.chat: is wrong"
    assert str(Complaint("routes.yaml", 2, "", "is wrong")) == "routes.yaml:2: is wrong"
    assert str(Complaint("routes.yaml", None, "", "is wrong")) == "routes.yaml: is wrong"


def test_error_has_one_complaint_a_line() -> None:
    complaints = [Complaint("f", 1, "a", "x"), Complaint("f", 2, "b", "y")]
    error = ConfigError(complaints)
    assert error.complaints == tuple(complaints)
    assert str(error) == "f:1: a: x\nf:2: b: y"


LINES: dict[Place, int] = {(): 1, ("a",): 3, ("a", "b"): 4, ("c",): 2}


def test_complaints_follow_the_lines_and_come_once() -> None:
    findings = [Finding(("a", "b"), "x"), Finding(("c",), "y"), Finding(("a", "b"), "x"), Finding(("a",), "z", line=9)]
    assert [(c.line, c.place, c.message) for c in complain("f", findings, LINES)] == [
        (2, "c", "y"),
        (4, "a.b", "x"),
        (9, "a", "z"),
    ]


def test_place_that_the_file_lacks_is_told_as_the_one_around_it() -> None:
    (complaint,) = complain("f", [Finding(("a", "b", 0, "url"), "x")], LINES)
    assert (complaint.line, complaint.place) == (4, "a.b")


def test_line_and_shown_place_may_differ() -> None:
    (complaint,) = complain("f", [Finding(("a", "b"), "unknown key", shown=("a",))], LINES)
    assert (complaint.line, complaint.place) == (4, "a")
