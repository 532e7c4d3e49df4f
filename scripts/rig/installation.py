"""Gets the peers: Debian's packages, or Python packages of one version, each in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.rig.peer import program_path
from scripts.rig.places import environment, kept
from scripts.rig.program import inherited


class CannotInstall(Exception):
    """Why a peer could not be installed, for the user."""


@dataclass(frozen=True, slots=True)
class Debian:
    """`package` brings the program `binary`."""

    binary: str
    package: str


@dataclass(frozen=True, slots=True)
class Python:
    """`packages` bring the program `binary`. `instead` replaces requirements of theirs, as uv's overrides do."""

    binary: str
    packages: tuple[str, ...]
    instead: tuple[str, ...] = ()


INSTALLABLE: dict[str, Debian | Python] = {
    "nginx": Debian("nginx", "nginx-light"),
    "haproxy": Debian("haproxy", "haproxy"),
    "vllm-router": Python("vllm-router", ("vllm-router==0.1.17",)),
    "sglang-router": Python("sglang-router", ("sglang-router==0.3.2",)),
    "smg": Python("smg", ("smg==1.13.0",)),
    "litellm": Python(
        "litellm",
        # OpenTelemetry: without it, an import that fails is tried again with every request.
        ("litellm[proxy]==1.109.1", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
        # It asks for exact versions of these, which not every index has.
        instead=("certifi>=2026.1", "litellm-proxy-extras>=0.4"),
    ),
}


def install(names: Iterable[str]) -> None:
    """Install these of INSTALLABLE; what is there stays. Raises `CannotInstall`."""
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        match INSTALLABLE[name]:
            case Debian() as debian:
                _install_debian(debian)
            case Python() as python:
                _install_python(name, python)


def _install_debian(wanted: Debian) -> None:
    if program_path(wanted.binary) is not None:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise CannotInstall(f"{wanted.binary} needs root on Debian: apt-get install {wanted.package}")
    _run(wanted.package, ["apt-get", "update", "-qq"])
    command = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", wanted.package]
    _run(wanted.package, command, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")  # installed, but not started


def _install_python(name: str, wanted: Python) -> None:
    folder = environment(name)
    if (folder / "bin" / wanted.binary).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run(name, [sys.executable, "-m", "venv", "--clear", str(folder)])
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    if not wanted.instead:
        _run(name, [*pip, *wanted.packages])
        return
    overrides = _overrides(name, wanted.instead)
    _run(name, [*pip, "uv"])
    uv = [str(folder / "bin" / "uv"), "pip", "install", "--quiet", "--python", python]
    _run(name, [*uv, "--override", str(overrides), *wanted.packages])


def _overrides(name: str, lines: Sequence[str]) -> Path:
    file = kept("installation") / f"{name}.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _run(name: str, command: Sequence[str], **variables: str) -> None:
    """Run a step; what it said is kept, and shown if it failed."""
    log = kept("installation") / f"{name}.log"
    with log.open("wb") as output:
        step = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**_variables(), **variables},
            check=False,
        )
    if step.returncode:
        last_words = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise CannotInstall(f"{name} could not be installed:\n{last_words}")


def _variables() -> dict[str, str]:
    """The installers, unlike the programs under test, may need a proxy to reach their index."""
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {**inherited(), **proxies}
