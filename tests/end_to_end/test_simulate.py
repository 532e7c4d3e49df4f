"""The drawings of docs/balancing.md are what the policies give today."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from scripts.rig.places import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

DOCS = CHECKOUT / "docs"


@pytest.mark.slow
def test_the_committed_drawings_are_up_to_date(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "scripts.simulation", "--into", str(tmp_path)], cwd=CHECKOUT, check=True, timeout=300
    )
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in DOCS.glob("balancing-*.svg")}


def test_every_drawing_is_an_image_that_the_page_shows() -> None:
    shown = re.findall(r"\((balancing-\w+\.svg)\)", (DOCS / "balancing.md").read_text())
    assert sorted(shown) == sorted(path.name for path in DOCS.glob("balancing-*.svg"))
    for name in shown:
        root = ElementTree.parse(DOCS / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{http://www.w3.org/2000/svg}text")) > 5
