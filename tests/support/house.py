"""The house rules of docs/architecture.md that a machine can hold: who imports whom, what stays pure, what has a twin.

Each rule is a function from a root folder to its violations, one sentence each; `test_architecture` holds our own house
against them, and small houses that break them.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIERS = (  # a room may import from its own line and the ones before it
    ("errors",),
    ("wire", "protocols", "request", "config"),
    ("routing", "access", "telemetry", "translation", "streams"),
    ("upstream", "toolchain"),
    ("admission", "fallback", "continuation", "relay", "realtime"),
    ("downstream", "reload"),
    ("loop_lag", "ports", "listener", "policies", "operations", "app"),
    ("systemd", "overseer", "serving"),
    ("alone", "lines", "signals", "worker_metrics", "supervisor", "workers", "__main__"),
)
TIER = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
NEVER_MEET = ({"upstream", "downstream"},)

PURE_ROOMS = {"errors", "request", "config", "wire", "protocols"}
PURE_ROOMS |= {"translation", "routing", "access", "telemetry", "streams"}
PURE_TOOLCHAIN = ("calls", "catalogue", "chat_sink", "loop", "merged", "restarts", "results")
PURE_FILES = {f"toolchain.{name}" for name in PURE_TOOLCHAIN}
EDGES_WITHIN = {"streams.redis"}  # in a pure room, and not pure
IMPURE = {"asyncio", "aiohttp", "aiohttp_cors", "uvloop"}

TESTED_ELSEWHERE = {"__init__.py", "__main__.py"}  # packages' fronts; the command, which end_to_end runs
NO_TWINS = {"end_to_end", "faults", "model_server", "node", "support"}  # folders of tests/ that mirror no room
OWN_TESTS = {"test_architecture.py"}

VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
FOREIGN_WORDS = VAGUE_NAMES | {"frontend", "backend", "deployment", "engine", "pump", "ban", "banned", "agent"}


@dataclass(frozen=True)
class Module:
    """One file of proxy/: its dotted name below `proxy` ("" for the package itself) and what it holds."""

    name: str
    file: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


def modules(root: Path) -> list[Module]:
    found = []
    for path in sorted((root / "proxy").rglob("*.py")):
        parts = path.relative_to(root / "proxy").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, str(path.relative_to(root)), ast.parse(path.read_text())))
    return found


def imported(module: Module) -> Iterator[str]:
    """Every absolute dotted name a file imports, wherever in it: `proxy.wire.sse`, `asyncio`."""
    package = module.file.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def imported_modules(module: Module, names: set[str]) -> Iterator[str]:
    """The files of proxy/ among them; `from proxy.wire import sse` and `from proxy.wire.sse import Event` alike."""
    for dotted in imported(module):
        first, *rest = dotted.split(".")
        if first == "proxy":
            while rest and ".".join(rest) not in names:
                rest.pop()
            yield ".".join(rest)


def import_order(root: Path) -> list[str]:
    """A file imports only from above it, and the two sides never meet."""
    house = modules(root)
    names = {module.name for module in house}
    wrong = [f"{module.file}: architecture.md knows no such room" for module in house if module.room not in {*TIER, ""}]
    for module in house:
        for target in imported_modules(module, names):
            room = target.partition(".")[0]
            if TIER.get(room, -1) > TIER.get(module.room, -1) or {room, module.room} in NEVER_MEET:
                wrong.append(f"{module.file} imports proxy.{target}")
    return wrong


def circles(root: Path) -> list[str]:
    """No file, and no room, is imported by what it imports."""
    house = modules(root)
    names = {module.name for module in house}
    files: dict[str, set[str]] = {module.name: set(imported_modules(module, names)) - {""} for module in house}
    rooms: dict[str, set[str]] = {module.room: set() for module in house}
    for module in house:
        rooms[module.room] |= {target.partition(".")[0] for target in files[module.name]} - {module.room}
    return [
        f"proxy.{name} imports itself in a circle"
        for graph in (files, rooms)
        for name in graph
        if _returns(graph, name)
    ]


def _returns(graph: dict[str, set[str]], start: str) -> bool:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph.get(name, ()))
    return start in seen


def purity(root: Path) -> list[str]:
    """Pure files import neither the event loop nor the network, nor a file of ours that may."""
    house = modules(root)
    names = {module.name for module in house}
    wrong = []
    for module in filter(_is_pure, house):
        wrong += [f"{module.file} imports {name}" for name in imported(module) if name.partition(".")[0] in IMPURE]
        edges = {other.name for other in house if not _is_pure(other)}
        wrong += [f"{module.file} imports proxy.{name}" for name in imported_modules(module, names) if name in edges]
    return wrong


def _is_pure(module: Module) -> bool:
    pure = module.room in PURE_ROOMS or module.name in PURE_FILES or not module.name
    return pure and module.name not in EDGES_WITHIN


def twins(root: Path) -> list[str]:
    """proxy/x/y.py has tests/x/test_y.py, and the other way round."""
    ours = {path.relative_to(root / "proxy") for path in (root / "proxy").rglob("*.py")}
    tests = {path.relative_to(root / "tests") for path in (root / "tests").rglob("test_*.py")}
    tests = {path for path in tests if path.parts[0] not in NO_TWINS | OWN_TESTS}
    wrong = [
        f"proxy/{path} has no tests/{path.with_name(f'test_{path.name}')}"
        for path in sorted(ours)
        if path.name not in TESTED_ELSEWHERE and path.with_name(f"test_{path.name}") not in tests
    ]
    for path in sorted(tests):
        tested = path.with_name(path.name.removeprefix("test_"))
        if tested not in ours:
            wrong.append(f"tests/{path} has no proxy/{tested}")
    return wrong


def names(root: Path) -> list[str]:
    """A file is called after what it is, and opens with what it is for."""
    house = modules(root)
    wrong = [
        f"{module.file}: a name that says nothing" for module in house if VAGUE_NAMES & set(module.name.split("."))
    ]
    return wrong + [f"{module.file} opens with no docstring" for module in house if not ast.get_docstring(module.tree)]


def words(root: Path) -> list[str]:
    """Classes and functions are named in the words of architecture.md, not in the ones it replaces."""
    return [
        f"{module.file}:{node.lineno}: {node.name}"
        for module in modules(root)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and FOREIGN_WORDS & {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", node.name)}
    ]
