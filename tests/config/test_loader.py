import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.loader import ConfigError, load, shipped

any_example = settings(derandomize=True, database=None, deadline=None, max_examples=60)

FULL = Path(__file__).with_name("full.yaml")
SECRETS = ("admin", "web", "redis", "replica", "header", "env", "url", "tool")


def complaints(folder: Path, text: str, **environ: str) -> list[str]:
    """What is said about the text, one complaint an item, without the file's name."""
    path = folder / "routes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return [str(complaint).removeprefix(f"{path}:") for complaint in caught.value.complaints]


def test_shipped_file_loads_without_any_variable() -> None:
    config = load(shipped(), {})
    assert {name: route.replicas[0].url for name, route in config.routes.items()} == {"echo": "demo://"}
    assert config.server.host == "127.0.0.1"


def test_complete_example_loads() -> None:
    config = load(FULL, {"PORT": "8081", "GPU2_KEY": "from-outside"})
    chat = config.routes["chat"]
    assert config.server.port == 8081
    assert [replica.url for replica in chat.replicas] == ["http://gpu-1:8000", "https://gpu-2/api"]
    assert chat.replicas[1].api_key is not None
    assert chat.replicas[1].api_key.get_secret_value() == "from-outside"
    assert (chat.timeouts.idle_s, chat.timeouts.total_s, chat.retry.max_wait_s) == (None, 3600.0, 0.0)
    assert config.routes["empty"].replicas == ()
    assert config.discover is True


def test_loaded_configuration_shows_no_secret() -> None:
    config = load(FULL, {})
    shown = str(config) + repr(config) + config.model_dump_json()
    assert [secret for secret in SECRETS if f"{secret}-secret" in shown] == []


@pytest.mark.parametrize(
    ("setting", "value", "attribute", "expected"),
    [
        ("port", "8081", "port", 8081),
        ("max_body", "1MiB", "max_body_bytes", 1 << 20),
        ("max_body", "4096", "max_body_bytes", 4096),
        ("drain", "5s", "drain_s", 5.0),
        ("drain", "none", "drain_s", None),
        ("gather", "off", "gather", "off"),
        ("host", "localhost", "host", "localhost"),
    ],
)
def test_variable_may_give_a_value_of_any_kind(
    tmp_path: Path, setting: str, value: str, attribute: str, expected: object
) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(f"server: {{{setting}: ${{X}}}}")
    assert getattr(load(path, {"X": value}).server, attribute) == expected


def test_unset_model_loads_as_not_configured(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("routes: {a: {model: ${A_MODEL}, replicas: [demo://]}, b: {replicas: []}}")
    assert {name: route.model for name, route in load(path, {}).routes.items()} == {"a": "", "b": "b"}
    assert load(path, {"A_MODEL": "m"}).routes["a"].model == "m"


def test_files_count_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text("hunter2")
    path = tmp_path / "routes.yaml"
    path.write_text("auth: {keys: [{name: web, key_file: key.txt}]}")
    assert load(path, {}).auth_keys[0].key_file == tmp_path / "key.txt"


def test_all_complaints_come_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = """\
server:
  host: 0.0.0.0
  port: 99999
  timeout: {headers: 5s}
  drain: 5
routes:
  one: ${URL}
  two: ftp://hunter2@gpu
  three:
    aliases: [two, x, x]
    fallbacks: [nowhere]
    replicas:
      - http://gpu:8000
      - {weight: 0, api_key: ${KEY}}
  "gpt-4.1":
    replcias: []
    tools: [clock.now]
  one: demo://
"""
    assert complaints(tmp_path, text) == [
        "2: server.host: other machines can reach this address: add auth.keys, or say `auth: none` if everybody may "
        "use the gateway",
        "3: server.port: must be a port from 0 to 65535",
        '4: server: unknown key "timeout"; did you mean "timeouts"?',
        "5: server.drain: has no unit; write a duration such as 250ms, 5s, 2m or 1h, or none",
        "7: routes.one: the variable URL is not set; ${URL:-} would make it optional",
        "8: routes.two: must start with http://, https:// or demo://",
        '10: routes.three.aliases[0]: "two" is a route\'s name already',
        '10: routes.three.aliases[2]: "x" is an alias of "three" already',
        '11: routes.three.fallbacks[0]: no route is called "nowhere"',
        "14: routes.three.replicas[1].api_key: the variable KEY is not set; ${KEY:-} would make it optional",
        '14: routes.three.replicas[1]: "url" is missing',
        "14: routes.three.replicas[1].weight: must be at least 1",
        '16: routes["gpt-4.1"]: unknown key "replcias"; did you mean "replicas"?',
        '17: routes["gpt-4.1"].tools[0]: tools has no "clock"',
        "18: routes.one: stands here again, first on line 7",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "server: {host: 0.0.0.0}\nauth: {keys: [{name: web, key: '${UNSET}'}]}",
        "server: {host: 0.0.0.0}\nauth: {keys: [{name: web, key_sha256: abc}]}",
        "server: {host: 0.0.0.0}\nauth: {keys: {}}",
        "server: {host: 0.0.0.0}\nauth: all",
        "routes:\n  a: {fallbacks: [b]}\n  b: [x]",
        "routes: {a: {tools: [t]}}\ntools: {t: {mcp: 5}}",
        "routes: {a: {replicas: [{url: '${UNSET}'}]}}",
        "auth: {keys: [{name: web, key: !hunter2}]}",
    ],
)
def test_one_mistake_makes_one_complaint(tmp_path: Path, text: str) -> None:
    assert len(complaints(tmp_path, text)) == 1


def test_complaint_about_an_alias_names_the_line_of_its_anchor(tmp_path: Path) -> None:
    text = "defaults:\n  timeouts: &slow\n    idle: 5\nroutes:\n  a:\n    timeouts: *slow\n"
    said = complaints(tmp_path, text)
    assert [complaint.split(": ")[:2] for complaint in said] == [
        ["3", "defaults.timeouts.idle"],
        ["3", "routes.a.timeouts.idle"],
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", " is empty; `routes:` with `echo: demo://` under it would do"),
        (b"# nothing\n", " is empty; `routes:` with `echo: demo://` under it would do"),
        (b"- a\n", "1: must be a mapping with keys such as routes and server"),
        (b"demo://", "1: must be a mapping with keys such as routes and server"),
        (b"a: 1\nb: \xff\n", "2: is not UTF-8 text"),
        ("routes:".encode("utf-16"), "1: is not UTF-8 text"),
        (b"a: [1\n", "2: is not valid YAML: a list or mapping in brackets has no end, or lacks a comma"),
        (b"a: 1\n" * (1 << 20), " is too large"),
    ],
    ids=["empty", "comment", "list", "text", "latin-1", "utf-16", "broken", "huge"],
)
def test_file_of_another_sort_gets_one_clear_complaint(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "routes.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value) == f"{path}:{complaint}"


def test_file_that_is_not_there_gets_one_clear_complaint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: there is no such file$"):
        load(tmp_path / "absent.yaml", {})


def test_directory_gets_one_clear_complaint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path, {})


def test_file_that_cannot_be_opened_gets_the_system_s_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("routes:")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load(tmp_path / "file" / "routes.yaml", {})


def test_path_that_no_system_can_have_gets_one_clear_complaint(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(tmp_path / name, {})


def test_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_bytes(b"\xef\xbb\xbfroutes: {echo: demo://}\r\n")
    assert list(load(path, {}).routes) == ["echo"]


def test_pipe_is_read_like_a_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"routes: {echo: demo://}")
    os.close(writer)
    try:
        assert list(load(Path(f"/dev/fd/{reader}"), {}).routes) == ["echo"]
    finally:
        os.close(reader)


PLACES: list[tuple[str, ...]] = [
    ("server", "host"), ("server", "port"), ("server", "max_body"), ("server", "drain"), ("admin", "listen"),
    ("admin", "key"), ("state",), ("discover",), ("cors", "origins"), ("auth",), ("routes", "a"),
    ("routes", "a", "model"), ("routes", "a", "replicas"), ("routes", "a", "balance"), ("routes", "a", "health"),
]  # fmt: skip


@any_example
@given(st.sampled_from(PLACES), st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_no_complaint_shows_what_a_variable_holds(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], value: str
) -> None:
    path = tmp_path_factory.mktemp("config") / "routes.yaml"
    path.write_text("".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(place)) + "            ${X}")
    hidden = f"hunter2{value}hunter2"
    try:
        shown = str(load(path, {"X": hidden}).admin)
    except ConfigError as exc:
        shown = str(exc)
    assert "hunter2" not in shown
