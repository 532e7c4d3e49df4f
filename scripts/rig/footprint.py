"""What a peer is before it has done anything: its size on the disk, and the time its import takes."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from scripts.rig.peer import Peer
from scripts.rig.places import CHECKOUT
from scripts.rig.program import inherited

INSTALLERS = {"pip", "setuptools", "wheel", "uv"}
TIMED_IMPORTS = 5
IMPORTS_WITHIN_S = 4.0


def installed_bytes(peer: Peer) -> int | None:
    """All files it brought, without byte code; None where nobody can say."""
    if peer.debian_packages:
        return _debian_bytes(peer.debian_packages)
    if peer.own_environment is not None:
        site = next(peer.own_environment.glob("lib/python3*/site-packages"))
        own = [found for found in distributions(path=[str(site)]) if _plain(found.name) not in INSTALLERS]
        return sum(map(_files_bytes, own))
    if "penstock" in peer.distributions:
        sources = sum(path.stat().st_size for path in (CHECKOUT / "proxy").rglob("*") if _counts(path))
        return sources + _shared_bytes(_requirements_of_the_gateway())
    return _shared_bytes(peer.distributions) if peer.distributions else None


def import_s(peer: Peer) -> float | None:
    """The quickest of some imports, less the interpreter's own start and without its end; None for what is not
    Python."""
    if not peer.imports:
        return None
    python = str(peer.own_environment / "bin" / "python") if peer.own_environment is not None else sys.executable
    _run_python(python, f"import {peer.imports}")  # compiles what has not been run yet
    return _quickest(python, f"import os, {peer.imports}; os._exit(0)") - _quickest(python, "import os; os._exit(0)")


def _quickest(python: str, code: str) -> float:
    began = time.monotonic()
    times = [_run_python(python, code)]
    while len(times) < TIMED_IMPORTS and time.monotonic() - began < IMPORTS_WITHIN_S:
        times.append(_run_python(python, code))
    return min(times)


def _run_python(python: str, code: str) -> float:
    began = time.perf_counter()
    subprocess.run([python, "-c", code], cwd=CHECKOUT, env=inherited(), check=True, capture_output=True)
    return time.perf_counter() - began


def _debian_bytes(packages: Iterable[str]) -> int | None:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Installed-Size}\n", *packages]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in said.splitlines() if line.startswith("installed ")]
    return sum(kilobytes) * 1024 if kilobytes else None


def _requirements_of_the_gateway() -> list[str]:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    return [_required_name(line) for line in setup["options"]["install_requires"].split("\n") if line]


def _shared_bytes(names: Iterable[str]) -> int:
    """Those distributions of this environment, and what they need in turn."""
    here = {_plain(found.name): found for found in distributions(path=[sysconfig.get_path("purelib")])}
    waiting = [_plain(name) for name in names]
    found: dict[str, Distribution] = {}
    while waiting:
        name = waiting.pop()
        if name in here and name not in found:
            found[name] = here[name]
            waiting += [_required_name(line) for line in here[name].requires or () if "extra ==" not in line]
    return sum(map(_files_bytes, found.values()))


def _files_bytes(distribution: Distribution) -> int:
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if _counts(path))


def _counts(path: Path) -> bool:
    return path.suffix != ".pyc" and path.is_file()


def _required_name(requirement: str) -> str:
    return _plain(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
