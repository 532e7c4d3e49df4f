"""The command as people call it: what it prints, and what it exits with."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from proxy import __version__
from proxy.__main__ import main
from tests.support.gateway import running_gateway
from tests.support.raw_client import ask, get
from tests.support.upstream import answer, answering, scripted_upstream

if TYPE_CHECKING:
    from pathlib import Path

DEMO = "routes: {m: demo://}\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "routes.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


BAD_FILES: dict[str, tuple[str, list[str]]] = {
    "broken YAML": ("routes: {m: demo://\n", [":2: "]),
    "no mapping": ("- m\n", [":1: "]),
    "empty": ("", ["is empty"]),
    "an unknown key": (
        "routes:\n  m:\n    url: x\n    replica: [demo://]\n",
        [':4: routes.m: unknown key "replica"', '"replicas"'],
    ),
    "an unset variable": (
        "routes:\n  m:\n    replicas: ['http://${NOT_SET}']\n",
        [":3: routes.m.replicas[0]", "NOT_SET"],
    ),
    "a bad address": ("routes:\n  m: ftp://x\n", [":2: routes.m", "http://, https:// or demo://"]),
    "a duplicate": ("routes:\n  m: demo://\n  m: demo://\n", [":3: "]),
    "several": (
        "server: {port: 99999}\nrouts: {}\n",
        [":1: server.port", ':2: unknown key "routs"; did you mean "routes"?'],
    ),
    "a public address without keys": ("server: {host: 0.0.0.0}\n" + DEMO, [":1: server.host", "auth: none"]),
}


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_exit_2_with_every_complaint_at_its_place(
    case: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, complaints = BAD_FILES[case]
    file = written(tmp_path, text)
    assert main([command, "-c", file]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for complaint in complaints:
        assert complaint in err, err
    assert all(line.startswith(file) for line in err.splitlines())
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_missing_file_is_exit_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-c", str(tmp_path / "none.yaml")]) == 2
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "x"],
        ["serve", "--port", "70000"],
        ["--port", "-1"],
        ["serve", "--log-format", "xml"],
        ["serve", "--workers", "0"],
        ["check", "--port", "1"],
        ["unknown"],
        ["--nothing"],
    ],
)
def test_bad_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: penstock" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("PENSTOCK_PORT", "x"), ("PENSTOCK_PORT", "70000"), ("PENSTOCK_LOG_LEVEL", "loud"), ("PENSTOCK_HOST", "0.0.0.0")],
)
def test_a_bad_variable_is_exit_2_with_one_complaint(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    try:
        code: object = main(["serve", "-c", written(tmp_path, DEMO)])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("penstock: ")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_flag_does_not_open_the_door_to_everybody(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", written(tmp_path, DEMO), "--host", host, "--port", "0"]) == 2
    assert "auth.keys" in capsys.readouterr().err


def test_check_lists_the_routes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(
        tmp_path, "routes:\n  m: demo://\n  n: {model: real, aliases: [o], replicas: ['http://h:1', 'http://h:2']}\n"
    )
    assert main(["check", "-c", file]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["m: model m, openai, 1 replica", "n: model real, openai, 2 replicas, also o"]
    assert err == ""


def test_check_takes_the_file_the_environment_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CONFIG", written(tmp_path, DEMO))
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "m: model m, openai, 1 replica\n"
    assert main(["check", "-c", written(tmp_path / "..", "routes: {flag: demo://}\n")]) == 0
    assert capsys.readouterr().out.startswith("flag: ")


async def probed(routes: str, tmp_path: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "check", "--probe", "-c", written(tmp_path, routes)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert err == b""
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_check_asks_each_replica_when_told_to(tmp_path: Path) -> None:
    listing = answer(200, json.dumps({"data": [{"id": "m"}]}).encode())
    async with scripted_upstream(answering(listing)) as there, scripted_upstream(answering(b"")) as gone:
        good = f"routes: {{m: '{there.url}', d: demo://}}\n"
        closed = gone.url
        code, out = await probed(good, tmp_path)
        assert code == 0
        assert "m[0]: answers 200" in out
        assert "d[0]: " in out
        assert [request.target for request in there.requests] == ["/v1/models"]
    code, out = await probed(f"routes: {{m: '{closed}', d: demo://}}\n", tmp_path)
    assert code == 1
    assert "m[0]: " in out


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() >= {"server", "routes", "auth", "cors"}


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"penstock {__version__}\n"


async def test_the_ready_line_is_the_first_on_standard_output_and_the_port_answers(tmp_path: Path) -> None:
    async with running_gateway("server: {port: 1}\n" + DEMO, tmp_path) as gateway:
        assert gateway.url.startswith("http://127.0.0.1:")
        answered = await ask(int(gateway.url.rpartition(":")[2]), get("/healthz"), "GET")
        assert answered.status == 200
        gateway.process.terminate()
        assert gateway.process.stdout is not None
        assert await gateway.process.stdout.read() == b""
        await gateway.process.wait()
        assert gateway.log() == ""


@pytest.mark.parametrize(
    ("file", "environment", "flag", "taken"),
    [
        ("127.0.0.1", None, None, "127.0.0.1"),
        ("127.0.0.1", "127.0.0.2", None, "127.0.0.2"),
        ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.3"),
        ("127.0.0.1", None, "127.0.0.3", "127.0.0.3"),
        ("127.0.0.1", "", None, "127.0.0.1"),
    ],
)
def test_a_flag_counts_more_than_the_environment_and_that_more_than_the_file(
    file: str, environment: str | None, flag: str | None, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxy import alone
    from proxy.config.model import Config
    from proxy.reload import Reloader

    served: list[Config] = []

    def note(reloader: Reloader, *_: object, **__: object) -> int:
        served.append(reloader.last.config)
        return 0

    monkeypatch.setattr(alone, "run", note)
    if environment is not None:
        monkeypatch.setenv("PENSTOCK_HOST", environment)
        monkeypatch.setenv("PENSTOCK_PORT", "7001" if environment else "")
    arguments = ["--host", flag, "--port", "7002"] if flag else []
    assert main(["-c", written(tmp_path, f"server: {{host: {file}, port: 7000}}\n" + DEMO), *arguments]) == 0
    port = 7002 if flag else 7001 if environment else 7000
    assert [(config.server.host, config.server.port) for config in served] == [(taken, port)]


async def test_what_is_accepted_but_does_nothing_yet_is_said_on_standard_error(tmp_path: Path) -> None:
    async with running_gateway("discover: true\n" + DEMO, tmp_path) as gateway:
        gateway.process.terminate()
        await gateway.process.wait()
        [line] = gateway.log().splitlines()
    assert line.endswith("discover is accepted but does nothing yet")


TOOLS = """
server: {port: 0}
routes: {m: {replicas: ["demo://"], tools: [t]}}
tools: {t: {mcp: {command: [x]}}}
"""


@pytest.mark.parametrize("command", [["serve"], ["serve", "--workers", "2"], ["check"]])
def test_tools_without_what_runs_them_are_exit_2_with_what_to_do(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main([*command, "-c", written(tmp_path, TOOLS)]) == 2
    said = capsys.readouterr().err
    assert said == 'penstock: a route has tools, and what runs them is not installed: pip install "penstock[mcp]"\n'


def test_check_takes_a_file_whose_routes_have_tools(tmp_path: Path) -> None:
    assert main(["check", "-c", written(tmp_path, TOOLS)]) == 0
