import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.document import Document, Unreadable, parse_document, resolve

any_example = settings(derandomize=True, database=None, deadline=None)


def complaint_about(text: str) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        parse_document(text)
    return caught.value


def test_every_value_knows_its_line() -> None:
    document = parse_document("a:\n  b: 1\n  c:\n    - x\n    - y: z\n\nd: {e: [1,\n  2]}\n")
    assert document.data == {"a": {"b": 1, "c": ["x", {"y": "z"}]}, "d": {"e": [1, 2]}}
    assert document.lines == {
        (): 1, ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5, ("a", "c", 1, "y"): 5,
        ("d",): 7, ("d", "e"): 7, ("d", "e", 0): 7, ("d", "e", 1): 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"), ("on", "on"), ("yes", "yes"), ("no", "no"), ("none", "none"), ("true", True), ("False", False),
        ("null", None), ("~", None), ("", None), ("8080", 8080), ("010", 10), ("-3", -3), ("1.5", 1.5), (".5", 0.5),
        ("1e3", 1000.0), ("0x1F", "0x1F"), ("1_000", "1_000"), ("12:30", "12:30"), ("2024-08-06", "2024-08-06"),
        (".nan", ".nan"), ("9" * 25, float("9" * 25)), ("=", "="), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_unquoted_values_read_as_in_yaml_1_2(text: str, value: object) -> None:
    assert resolve(text) == value
    assert parse_document(f"a: {text}").data == {"a": value}


def test_quoted_values_are_text() -> None:
    assert parse_document("a: '5'\nb: \"true\"\nc: |\n  7\nd: !!str 8").data == {
        "a": "5",
        "b": "true",
        "c": "7\n",
        "d": "8",
    }


def test_keys_are_text_as_written() -> None:
    assert list(parse_document("1.10: a\non: b\n'null': c\n2024-08-06: d").data) == ["1.10", "on", "null", "2024-08-06"]


def test_variables_need_no_quotes_inside_brackets() -> None:
    document = parse_document("a: {k: ${KEY}, l: [${A:-b}, 'x${C:?say}'], ${odd}: 1}\nb: ${X}/${Y}")
    assert document.data == {"a": {"k": "${KEY}", "l": ["${A:-b}", "x${C:?say}"], "${odd}": 1}, "b": "${X}/${Y}"}


@any_example
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Co", "Cn", "Zl", "Zp"]), max_size=40))
def test_quoted_text_comes_through_unchanged(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert parse_document(f"a: [{quoted}]").data == {"a": [text]}


def test_anchors_and_merge_keys_work() -> None:
    document = parse_document(
        "base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\n"
        "one:\n  <<: *base\n  b: 9\ntwo:\n  <<: [*base, *other]\nthree: [*base]\n"
    )
    assert document.data["one"] == {"b": 9, "a": 1}
    assert document.data["two"] == {"a": 1, "b": 2, "c": 4}
    assert document.data["three"] == [{"a": 1, "b": 2}]
    assert document.findings == ()


def test_merged_value_has_the_line_where_it_stands() -> None:
    assert parse_document("base: &base\n  a: 1\none:\n  <<: *base\n").lines["one", "a"] == 2


def test_key_given_twice_is_found_with_both_lines() -> None:
    (finding,) = parse_document("a:\n  b: 1\n  c: 2\n  b: 3\n").findings
    assert (finding.at, finding.line, finding.message) == (("a", "b"), 4, "stands here again, first on line 2")


def test_tags_are_found_and_not_obeyed() -> None:
    document = parse_document("a: !!python/object/apply:os.system [echo]\nb: !hunter2\n")
    assert [finding.at for finding in document.findings] == [("a",), ("b",)]
    assert "hunter2" not in str(document.findings)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a:\n\tb: 1\n", 2, "tab"),
        ("a:\n  b: 1\n\tc: 2\n", 3, "tabs"),
        ("a: 1\nb: @hunter2\n", 2, "quotes"),
        ("a: hunter2: b\n", 1, "colon"),
        ("a: 1\nhunter2\nc: 2\n", 3, "no colon"),
        ('a: "hunter2\nb: 1\n', 3, "no end"),
        ("a: [1, 2\nb: 3\n", 2, "no end"),
        ("a: {x: 1\nb: 3\n", 2, "no end"),
        ("a:\n    b: 1\n  c: 2\n", 3, "indentation"),
        ("a:\n - 1\n b: 2\n", 3, "indentation"),
        ('a: "\\k"\n', 1, "single quotes"),
        ("a: ]\n", 1, "value is missing"),
        ("a: |hunter2\n  y\n", 1, "quotes"),
        ("a: !x!hunter2 y\n", 1, "quotes"),
        ("a: *\n", 1, "quotes"),
        ("a: *hunter2\n", 1, "quotes"),
        ("a: &x [*x]\n", 1, "no earlier anchor"),
        ("%YAML 3.0\n---\na: 1\n", 1, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("? [a]\n: b\n", 1, "key must be plain text"),
        ("a:\n  <<: 5\n", 2, "takes a mapping"),
        ("a: 1\nb: \x07\n", 2, "control character"),
        ("a: \ue000", 1, "control character"),
    ],
)
@pytest.mark.parametrize("parser", ["CSafeLoader", "SafeLoader"])
def test_broken_yaml_is_one_plain_sentence_without_the_text(
    monkeypatch: pytest.MonkeyPatch, parser: str, text: str, line: int, message: str
) -> None:
    monkeypatch.setattr(yaml, "CSafeLoader", getattr(yaml, parser))
    complaint = complaint_about(text)
    assert complaint.line == line
    assert message in complaint.message
    assert "hunter2" not in complaint.message


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "~"])
def test_empty_text_has_no_data(text: str) -> None:
    assert parse_document(text).data is None


def test_billion_laughs_end_quickly() -> None:
    rows = ["a0: &a0 [" + ",".join(["x"] * 10) + "]"]
    rows += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 20)]
    started = time.process_time()
    assert "too large" in complaint_about("\n".join(rows)).message
    assert time.process_time() - started < 5


def test_merge_bomb_ends_quickly() -> None:
    rows = ["a: &a {" + ",".join(f"k{n}: 1" for n in range(1000)) + "}"]
    rows += [f"b{n}: {{<<: [" + ",".join(["*a"] * 100) + "]}" for n in range(1000)]
    started = time.process_time()
    assert "too large" in complaint_about("\n".join(rows)).message
    assert time.process_time() - started < 5


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_ends_quickly(opening: str) -> None:
    complaint = complaint_about(opening * 100_000)
    assert (complaint.line, complaint.message) == (1, "is nested too deeply")


def test_aliases_cannot_nest_deeper_than_text_can() -> None:
    rows = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)]
    assert "deeply" in complaint_about("\n".join(rows)).message


@any_example
@given(st.text(alphabet="ab:-[]{}*&!|>'\"# \n\t,?%@<~", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        outcome: Document | Unreadable = parse_document(text)
    except Unreadable as exc:
        outcome = exc
    assert isinstance(outcome, Document) or outcome.message.startswith(("is ", "a ", "an ", "<<", "has "))


def test_complete_example_is_read_without_findings() -> None:
    document = parse_document(Path(__file__).with_name("full.yaml").read_text())
    assert document.findings == ()
    assert document.data["routes"]["chat"]["replicas"][1]["api_key"] == "${GPU2_KEY:-replica-secret}"
