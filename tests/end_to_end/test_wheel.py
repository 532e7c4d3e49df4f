"""The wheel: what `pip install .` gives runs without the checkout."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, in a folder that nothing of the checkout is in."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, timeout=120)
    (wheel,) = folder.glob("penstock-*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_the_wheel_carries_every_file_of_the_package(unpacked: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "proxy"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    carried = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert set(tracked.split()) - carried == set()
    for name in ("routes.yaml", "routes.schema.json"):
        assert (unpacked / "proxy" / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.slow
async def test_the_wheel_serves_the_shipped_routes_and_the_page(unpacked: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "PYTHONPATH"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--port", "0"),
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(unpacked)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            port = int((await process.stdout.readline()).decode().strip().rpartition(":")[2])
            for path, expected in (("/v1/models", b'"echo"'), ("/", b"<html")):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                assert expected in await reader.read(-1)
                writer.close()
    finally:
        process.terminate()
        await process.wait()
