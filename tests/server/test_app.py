"""Starting, refusing to start, and stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit_server
from edgekit_server.app import Server
from edgekit_server.errors import ConfigError, ModelMissingError, PortInUseError
from tests.support.http_server import config_for
from tests.support.stub_engine import ROOT, StubEngine

FRONT = """
import json, sys
from pathlib import Path
import httpx
from tests.support.http_server import config_for, running
from tests.support.stub_engine import StubEngine

stub = StubEngine([], Path(sys.argv[2]))
with running(config_for(Path(sys.argv[1])), stub.spawn) as server:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    httpx.post(server.url + "/v1/chat/completions", json=body).raise_for_status()
native = {"llama_cpp", "numpy"} & set(sys.modules)
print(json.dumps(sorted(native)))
"""

SERVE = """
import sys
from pathlib import Path
from edgekit_server.app import Server
from tests.support.http_server import config_for
from tests.support.stub_engine import StubEngine

server = Server(config_for(Path(sys.argv[1])), spawn=StubEngine([], Path(sys.argv[2])).spawn)
server.run(lambda url: print(url, flush=True))
print("ended", flush=True)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")])}


def test_front_never_loads_native_code(gguf: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FRONT, str(gguf), str(tmp_path / "log")],
        env=_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_run_cleanly(gguf: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(gguf), str(tmp_path / "log")],
        env=_environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(number)
        assert process.stdout.readline() == "ended\n"
        assert process.wait(20) == 0
    assert "stop" in (tmp_path / "log").read_text()


def test_importing_the_package_loads_no_web_framework() -> None:
    code = "import sys, edgekit_server; print({'fastapi', 'uvicorn', 'jinja2'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=_environment(), capture_output=True, text=True
    )
    assert run.stdout.strip() == "set()", run.stderr


def test_port_in_use_is_found_before_anything_is_loaded(gguf: Path) -> None:
    def spawn(_: object) -> None:
        raise AssertionError("nothing may be started")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            Server(config_for(gguf, port=port), spawn=spawn)  # type: ignore[arg-type]
    assert caught.value.exit_code == 75
    assert caught.value.hint


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError):
        edgekit_server.serve(config_for(tmp_path / "none.gguf"))


def test_unknown_host(gguf: Path) -> None:
    with pytest.raises(ConfigError, match="cannot resolve"):
        Server(config_for(gguf, host="no such host", api_keys=("k",)))


def test_failure_in_on_ready_ends_the_server(gguf: Path, tmp_path: Path) -> None:
    def on_ready(_: str) -> None:
        raise RuntimeError("mine")

    server = Server(config_for(gguf), spawn=StubEngine([], tmp_path / "log").spawn)
    with pytest.raises(RuntimeError, match="mine"):
        server.run(on_ready)


@pytest.mark.parametrize(
    ("arguments", "status"), [(["no.gguf"], 66), (["--host", "0.0.0.0", "no.gguf"], 78)]
)
def test_developer_entry_exits_with_the_error_s_code(arguments: list[str], status: int) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "edgekit_server", *arguments],
        env=_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == status
    assert run.stderr.startswith("error: ")
