from __future__ import annotations

import gzip
import re
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from yarl import URL

from proxy.downstream.pages import CONTENT_TYPES, add_pages, read_pages

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp.test_utils import TestClient
    from pytest_aiohttp import AiohttpClient

    Client = TestClient[web.Request, web.Application]

PLAYGROUND = files("proxy") / "web" / "playground"
NAMES = sorted(file.name for file in PLAYGROUND.iterdir())


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    app = web.Application()
    add_pages(app.router)
    return await aiohttp_client(app)


async def test_root_is_the_playground(client: Client) -> None:
    answer = await client.get("/")

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert await answer.read() == (PLAYGROUND / "index.html").read_bytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "index.html"])
async def test_every_file_is_served_under_its_name_with_its_type(client: Client, name: str) -> None:
    answer = await client.get(f"/playground/{name}")

    assert answer.status == 200
    assert answer.headers["Content-Type"] == CONTENT_TYPES[name[name.rindex(".") :]]
    assert await answer.read() == (PLAYGROUND / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("client.js", "text/javascript; charset=utf-8"), ("client.d.ts", "text/plain; charset=utf-8")],
)
async def test_client_and_its_types_are_served_at_the_root(client: Client, name: str, content_type: str) -> None:
    answer = await client.get(f"/{name}")

    assert answer.status == 200
    assert answer.headers["Content-Type"] == content_type
    assert await answer.read() == (files("proxy") / "web" / name).read_bytes()


def test_client_is_smaller_than_eight_kilobytes_compressed() -> None:
    assert len(gzip.compress((files("proxy") / "web" / "client.js").read_bytes())) < 8000


async def test_every_file_that_the_page_and_its_modules_name_is_served(client: Client) -> None:
    page = (PLAYGROUND / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="(playground/[^"]+)"', page))
    for name in NAMES:
        if name.endswith(".js"):
            imports = re.findall(r'from "(\.[^"]+)"', (PLAYGROUND / name).read_text())
            named |= {str(URL("http://host/playground/").join(URL(imported)).path)[1:] for imported in imports}

    assert len(named) > 10
    assert "client.js" in named
    assert {path for path in named if (await client.get(f"/{path}")).status != 200} == set()


@pytest.mark.parametrize("path", ["/", "/playground/main.js"])
async def test_head_has_the_headers_and_no_body(client: Client, path: str) -> None:
    whole = await client.get(path)
    head = await client.head(path)

    assert head.status == 200
    assert await head.read() == b""
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control", "Content-Security-Policy"):
        assert head.headers[name] == whole.headers[name]


async def test_a_browser_that_holds_the_version_gets_304(client: Client) -> None:
    etag = (await client.get("/")).headers["ETag"]

    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await client.get("/", headers={"If-None-Match": condition})
        assert (answer.status, await answer.read()) == (304, b"")
        assert answer.headers["ETag"] == etag
        assert answer.headers["Cache-Control"] == "no-cache"


async def test_another_version_is_sent_whole(client: Client) -> None:
    answer = await client.get("/", headers={"If-None-Match": '"0123456789abcdef0123456789abcdef"'})

    assert answer.status == 200
    assert len(await answer.read()) > 1000


async def test_each_file_has_its_own_etag(client: Client) -> None:
    paths = [path for path, _ in read_pages(PLAYGROUND)]  # type: ignore[arg-type,unused-ignore]

    assert len({(await client.get(path)).headers["ETag"] for path in paths}) == len(paths)


async def test_policy_lets_only_this_gateway_in(client: Client) -> None:
    headers = (await client.get("/")).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))

    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


async def test_page_has_nothing_inline_and_nothing_from_elsewhere(client: Client) -> None:
    page = await (await client.get("/")).text()

    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page) is None
    assert re.search(r"https?:|//[a-z]", page) is None


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/index.html",
        "/playground/unknown.js",
        "/playground/..%2f..%2f__init__.py",
        "/playground/%2e%2e/%2e%2e/errors.py",
        "/playground/main.js/",
        "/playground/main.js%00",
    ],
)
async def test_any_other_name_is_not_found(client: Client, path: str) -> None:
    assert (await client.get(URL(path, encoded=True))).status == 404


async def test_other_methods_are_refused(client: Client) -> None:
    assert (await client.post("/")).status == 405


def test_files_of_other_kinds_and_folders_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "playground"
    (folder / "deeper").mkdir(parents=True)
    for name in ("index.html", "main.js", "notes.md", "deeper/hidden.js"):
        (folder / name).write_text("x")

    assert [path for path, _ in read_pages(folder)] == ["/", "/playground/main.js"]
