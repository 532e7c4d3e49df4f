"""The rig's two C programs, built when they are first used and when their sources have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from scripts.rig.places import SOURCES, kept

FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


class CannotBuild(Exception):
    """There is no C compiler, or it did not like what it saw."""


def native_program(name: str) -> Path:
    """The program `upstream` or `loadgen`, up to date. Raises `CannotBuild`."""
    folder = SOURCES / "native"
    program = kept("native") / name
    newest = max(source.stat().st_mtime for source in folder.iterdir())
    if not program.exists() or program.stat().st_mtime < newest:
        _build(folder / f"{name}.c", program)
    return program


def _build(source: Path, program: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise CannotBuild("the rig needs a C compiler: on Debian, apt-get install gcc libc6-dev")
    unfinished = program.with_suffix(".new")
    built = subprocess.run([compiler, *FLAGS, "-o", unfinished, source], capture_output=True, text=True, check=False)
    if built.returncode:
        raise CannotBuild(f"{source.name} could not be built:\n{built.stderr}")
    unfinished.replace(program)
