"""The architecture holds: our house keeps its rules, and each rule notices a house that does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.house import circles, import_order, modules, names, purity, twins, words

if TYPE_CHECKING:
    from collections.abc import Callable

    Rule = Callable[[Path], list[str]]

HOUSE = Path(__file__).parent.parent


@pytest.mark.parametrize("rule", [import_order, circles, purity, twins, names, words])
def test_our_house_keeps_the_rule(rule: Rule) -> None:
    assert rule(HOUSE) == []


def test_our_house_is_looked_at() -> None:
    assert {"errors", "access.keys", "wire.sse"} <= {module.name for module in modules(HOUSE)}


def house(root: Path, files: dict[str, str]) -> Path:
    """A house of these files of proxy/ and their twins: `house(tmp_path, {"wire/sse": "import asyncio"})`."""
    for name, text in files.items():
        path = root / "proxy" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        twin = root / "tests" / path.relative_to(root / "proxy").with_name(f"test_{path.name}")
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.touch()
    return root


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("from proxy.downstream.http import serve", "downstream.http"),
        ("from proxy.downstream import http", "downstream.http"),
        ("from proxy import downstream", "downstream"),
        ("import proxy.downstream.http", "downstream.http"),
        ("import json, proxy.downstream.http as http", "downstream.http"),
        ("from ..downstream import http", "downstream.http"),
        ("from .. import downstream", "downstream"),
        ("def late():\n    from proxy.downstream.http import serve", "downstream.http"),
        ("if TYPE_CHECKING:\n    from proxy.downstream.http import serve", "downstream.http"),
    ],
)
def test_a_file_cannot_import_from_below_it_however_it_is_written(text: str, target: str, tmp_path: Path) -> None:
    built = house(tmp_path, {"upstream/pool": text, "downstream/__init__": "", "downstream/http": ""})
    assert import_order(built) == [f"proxy/upstream/pool.py imports proxy.{target}"]


@pytest.mark.parametrize(
    ("importer", "target"),
    [
        ("downstream/http", "upstream/pool"),  # from above it, but the two sides never meet
        ("routing/table", "upstream/pool"),
        ("errors", "wire/sse"),
        ("__init__", "errors"),
        ("config/model", "routing/table"),
        ("relay", "downstream/http"),
        ("app", "workers"),
    ],
)
def test_the_import_order_is_held(importer: str, target: str, tmp_path: Path) -> None:
    dotted = f"proxy.{target.replace('/', '.')}"
    built = house(tmp_path, {target: "", importer: f"import {dotted}"})
    assert import_order(built) == [f"proxy/{importer}.py imports {dotted}"]


def test_importing_from_above_is_fine(tmp_path: Path) -> None:
    built = house(
        tmp_path,
        {
            "__init__": "",
            "errors": "from proxy import __version__",
            "wire/sse": "from proxy.errors import Broken",
            "protocols/openai": "from proxy.wire.sse import Event",
            "routing/table": "",
            "upstream/pool": "from proxy.routing import table",
            "relay": "from proxy.upstream.pool import Pool\nfrom .routing import table",
            "app": "from proxy import relay",
        },
    )
    assert import_order(built) == []
    assert circles(built) == []


def test_a_room_nobody_planned_is_noticed(tmp_path: Path) -> None:
    built = house(tmp_path, {"gadgets/box": ""})
    assert import_order(built) == ["proxy/gadgets/box.py: architecture.md knows no such room"]


def test_files_in_a_circle_are_noticed(tmp_path: Path) -> None:
    built = house(
        tmp_path,
        {
            "wire/sse": "from proxy.wire import ndjson",
            "wire/ndjson": "from proxy.wire.frames import text",
            "wire/frames": "import proxy.wire.sse",
            "wire/headers": "import proxy.wire.sse",
        },
    )
    assert [line.split()[0] for line in circles(built)] == ["proxy.wire.frames", "proxy.wire.ndjson", "proxy.wire.sse"]


def test_rooms_in_a_circle_are_noticed_though_their_files_are_not(tmp_path: Path) -> None:
    built = house(
        tmp_path,
        {
            "wire/sse": "from proxy.protocols import names",
            "protocols/names": "",
            "protocols/openai": "from proxy.wire import frames",
            "wire/frames": "",
        },
    )
    assert [line.split()[0] for line in circles(built)] == ["proxy.protocols", "proxy.wire"]


@pytest.mark.parametrize("file", ["wire/sse", "errors", "translation/neutral", "streams/stream", "streams/store"])
@pytest.mark.parametrize(
    "text", ["import asyncio", "from aiohttp import web", "def f():\n    import asyncio.events as e"]
)
def test_pure_files_stay_pure(file: str, text: str, tmp_path: Path) -> None:
    assert [line.split()[0] for line in purity(house(tmp_path, {file: text}))] == [f"proxy/{file}.py"]


def test_pure_files_do_not_borrow_an_edge(tmp_path: Path) -> None:
    built = house(tmp_path, {"streams/redis": "import asyncio", "streams/stream": "from proxy.streams import redis"})
    assert purity(built) == ["proxy/streams/stream.py imports proxy.streams.redis"]


def test_edges_may_use_the_event_loop(tmp_path: Path) -> None:
    assert purity(house(tmp_path, dict.fromkeys(["upstream/pool", "streams/redis", "relay"], "import asyncio"))) == []


def test_a_file_without_its_twin_is_noticed_either_way(tmp_path: Path) -> None:
    tests = house(tmp_path, {"wire/sse": "", "errors": ""}) / "tests"
    assert twins(tmp_path) == []
    (tests / "test_errors.py").unlink()
    (tests / "wire" / "test_ndjson.py").touch()
    assert twins(tmp_path) == [
        "proxy/errors.py has no tests/test_errors.py",
        "tests/wire/test_ndjson.py has no proxy/wire/ndjson.py",
    ]


def test_fronts_the_command_and_journeys_need_no_twin(tmp_path: Path) -> None:
    tests = house(tmp_path, {"wire/__init__": "", "__main__": ""}) / "tests"
    (tests / "test___main__.py").unlink()
    (tests / "wire" / "test___init__.py").unlink()
    (tests / "end_to_end").mkdir()
    (tests / "end_to_end" / "test_playground.py").touch()
    assert twins(tmp_path) == []


@pytest.mark.parametrize("file", ["wire/utils", "routing/helpers", "common/events", "manager"])
def test_names_that_say_nothing_are_noticed(file: str, tmp_path: Path) -> None:
    built = house(tmp_path, {file: '"""Things."""'})
    assert names(built) == [f"proxy/{file}.py: a name that says nothing"]


def test_a_file_that_does_not_say_what_it_is_for_is_noticed(tmp_path: Path) -> None:
    built = house(tmp_path, {"wire/sse": "import json", "wire/frames": '"""Frames."""'})
    assert names(built) == ["proxy/wire/sse.py opens with no docstring"]


@pytest.mark.parametrize(
    "text", ["class BackendPool: ...", "class HTTPEngine: ...", "def pump_events(): ...", "async def ban(): ..."]
)
def test_words_the_glossary_replaces_are_noticed(text: str, tmp_path: Path) -> None:
    assert [line.split(": ")[0] for line in words(house(tmp_path, {"relay": text}))] == ["proxy/relay.py:1"]


def test_words_that_only_look_alike_are_not(tmp_path: Path) -> None:
    text = "class Banner: ...\ndef reengineered(): ...\ndef commonly(): ..."
    assert words(house(tmp_path, {"relay": text})) == []
