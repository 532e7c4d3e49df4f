"""A real model server for end-to-end tests: `transformers serve` on a tiny random Llama, started once for all of them.

Leaves the making of the model to tests/model_server/make_model.py, and the environment that both run in to
`scripts/install model_server`.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".venv-model-server" / "bin"
RECIPE = (ROOT / "tests/model_server/make_model.py", ROOT / "tests/model_server/requirements.txt")
START_TIMEOUT_S = 300.0  # loading torch takes 7 s on two idle cores, more than a minute on busy ones
PATIENT = "health: {timeout: 30s}"
"""For routes to it: a server that is kept from its core for seconds is no dead one, which refuses at once."""
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A server that runs: `url` is its root (http://127.0.0.1:PORT), `model` the one name it accepts, `group` its
    processes'."""

    url: str
    model: str
    group: int

    def kill(self) -> None:
        """End it as a crash would: no connection is closed in any order."""
        os.killpg(self.group, signal.SIGKILL)


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """Run the server for the whole session. Fails, rather than skips, where its environment was never installed."""
    if not (PROGRAMS / "transformers").exists():
        pytest.fail("no model server here: run scripts/install model_server (1.2 GB)", pytrace=False)
    with running_model_server(tiny_model(), tmp_path_factory.mktemp("model-server") / "log") as server:
        yield server


def tiny_model() -> Path:
    """Return the folder of the tiny model, made once for each version of its recipe (a few seconds)."""
    version = hashlib.sha256(b"\0".join(part.read_bytes() for part in RECIPE)).hexdigest()[:16]
    folder = ROOT / ".cache" / f"tiny-llama-{version}"
    if not folder.exists():
        unfinished = folder.with_suffix(f".{os.getpid()}")
        command = [PROGRAMS / "python", RECIPE[0], unfinished]
        subprocess.run(command, check=True, capture_output=True, env=_environment(), timeout=START_TIMEOUT_S)
        try:
            unfinished.rename(folder)
        except OSError:  # another run made it meanwhile
            shutil.rmtree(unfinished)
    return folder


@contextmanager
def running_model_server(model: Path, log: Path, port: int | None = None) -> Iterator[ModelServer]:
    """Serve `model` on this or on a free loopback port, in a process group of its own; what it says goes to the file
    `log`."""
    port = port or _free_port()
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command = [str(PROGRAMS / "transformers"), "serve", str(model), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log)
        _warm_up(url, str(model))
        yield ModelServer(url, str(model), process.pid)
    finally:
        _stop(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(
        f"the model server did not start (exit code {process.poll()}):\n{log.read_text()[-4000:]}", pytrace=False
    )


def _warm_up(url: str, model: str) -> None:
    """Have it answer once: the model is loaded for that, and on busy cores it answers no health check meanwhile."""
    question = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    body = json.dumps(question).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
        answer.read()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Return this process's environment, made offline and, with one thread, the same sums on every run."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(ROOT / ".cache" / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
