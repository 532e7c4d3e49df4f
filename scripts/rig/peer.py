"""A peer: one program that can be measured, or one way to use it. Which there are is in `gateway` and `peers`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is to listen, on 127.0.0.1, and where it may keep files; `spare_port` is for its own metrics."""

    folder: Path
    port: int
    spare_port: int
    upstream_port: int

    @property
    def upstream(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)


Command = Callable[[Place], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """`command` writes the configuration and says how to start it; None: the clients ask the model server itself.

    `binary` must be there. `websocket` is the path where it takes bare WebSockets, or with `mux` such of `llm-mux.v1`,
    of which each carries so many streams. `imports` are the modules that are imported at its start, `distributions`
    what it needs of the environment it shares (None: all of its own one).
    """

    name: str
    command: Command | None = None
    binary: str = sys.executable
    websocket: str | None = None
    mux: int = 0
    headers: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    ready_within_s: float = 30.0
    usual_start_s: float = 2.5
    """What a start takes with its warming up, for the estimate of a run's length."""
    own_environment: Path | None = None
    debian_packages: tuple[str, ...] = ()
    imports: str = ""
    distributions: tuple[str, ...] = ()
    usual: bool = True
    """Whether it runs when no peers are named."""
    started_in: Path | None = None
    """A folder of its own, but for the gateway, which is run from the checkout."""

    @property
    def is_installed(self) -> bool:
        return self.command is None or program_path(self.binary) is not None


def program_path(binary: str) -> str | None:
    """Where a program is; Debian keeps servers in folders that not every user's PATH has."""
    return shutil.which(binary, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_FOLDERS}")
