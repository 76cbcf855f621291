"""Every command in the README runs, and its Python talks to the endpoint it tells you to start."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]
# These two are the test run itself and the whole product; CI and the slow tests run them.
MAKE = {"make deploy", "make test"}
SERVING = [c for c in COMMANDS if c.startswith("edgekit deploy") and "--dry-run" not in c]
CONNECTING = [c for c in COMMANDS if c.startswith("edgekit connect ")]
BUNDLING = [c for c in COMMANDS if c.startswith(("edgekit bundle ", "edgekit store "))]
PLAIN = [c for c in COMMANDS if c not in {*MAKE, *SERVING, *CONNECTING, *BUNDLING}]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    folders = {f"EDGEKIT_{n}_DIR": str(tmp_path / n.lower()) for n in ("DATA", "CONFIG", "CACHE")}
    folders["HOME"] = str(tmp_path)
    return {k: v for k, v in os.environ.items() if not k.startswith("EDGEKIT_")} | folders


def argv(command: str, tmp_path: Path) -> list[str]:
    words = shlex.split(command.replace("/tmp/", f"{tmp_path}/"))
    assert words[0] == "edgekit"
    return [sys.executable, "-m", "edgekit", *words[1:]]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_the_readme_has_commands() -> None:
    assert set(COMMANDS) >= MAKE
    assert len(PLAIN) > 5
    assert len(SERVING) == 2


@pytest.mark.parametrize("command", PLAIN)
def test_command(command: str, env: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        argv(command, tmp_path), cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    # doctor exits with 70 where something is broken, and says what; that is its job.
    allowed = {0, 70} if command == "edgekit doctor" else {0}
    assert done.returncode in allowed, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_bundle_examples(env: dict[str, str], tmp_path: Path) -> None:
    """In the order they stand there: each needs what the one before it made."""
    assert len(BUNDLING) == 5
    for command in BUNDLING:
        done = subprocess.run(
            argv(command, tmp_path), cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        assert "Traceback" not in done.stderr


@pytest.fixture
def endpoint(env: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The developer's `edgekit deploy` of the README, on a free port."""
    port = free_port()
    command = re.sub(r"--port \d+", f"--port {port}", next(c for c in SERVING if "--port" in c))
    process = subprocess.Popen(argv(command, tmp_path), cwd=ROOT, env=env, stdout=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_python_example(endpoint: str, env: dict[str, str]) -> None:
    code = next(block for language, block in BLOCKS if language == "python")
    code = code.replace("http://127.0.0.1:8485", endpoint)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "edgekit" in done.stdout


def test_bench_example(endpoint: str, env: dict[str, str], tmp_path: Path) -> None:
    command = re.search(r"`(edgekit bench \S+ --users [\d,]+)`", README)
    assert command is not None
    words = argv(command[1].replace("http://127.0.0.1:8485", endpoint), tmp_path)
    done = subprocess.run(
        [*words, "--requests", "1"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout


def test_connect_examples(endpoint: str, env: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / ".continue" / "config.yaml"
    assert len(CONNECTING) == 3
    for command in CONNECTING:
        done = subprocess.run(
            argv(command, tmp_path),
            env={**env, "EDGEKIT_CONNECT_URL": endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert config.exists() == ("--" not in command)
