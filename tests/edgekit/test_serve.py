"""`edgekit serve`: one GGUF file, and the engine's settings that only a person can decide."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.cli import POCKET, Cli, free_port

LOG = "serve.log"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def gguf(cli: Cli) -> Path:
    target = cli.home / "p.gguf"
    assert cli.run("quantize", POCKET, target, "--filetype", "Q4_0").returncode == 0
    return target


@contextmanager
def serving(cli: Cli, *options: object) -> Iterator[str]:
    """Serve, give the address, stop by SIGTERM and expect a clean end; the log is LOG."""
    with (
        (cli.home / LOG).open("w") as log,
        subprocess.Popen(
            cli.command("serve", *options, "--port", str(free_port()), "--json"),
            env=cli.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        yield str(json.loads("".join(lines))["url"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_serves_one_file_until_it_is_told_to_stop(cli: Cli) -> None:
    with serving(cli, gguf(cli), "--model-id", "p") as url:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
        assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "p"


def test_a_draft_model_and_caches(cli: Cli) -> None:
    file, folder = gguf(cli), cli.home / "kv"
    options = ("--draft-model", file, "--host-cache-mib", "16", "--disk-cache", folder)
    body = {"prompt": "def add(a, b):\n", "max_tokens": 48, "temperature": 0, "ignore_eos": True}
    with serving(cli, file, *options, "--kv-mode", "unified") as url:
        answer = httpx.post(f"{url}/completions", json=body, timeout=60).raise_for_status().json()
        assert answer["usage"]["completion_tokens"] == 48
    assert list(folder.iterdir()) != []
    log = (cli.home / LOG).read_text()
    assert f"speculation: draft model {file.name}, prompt lookup" in log
    assert "kv: unified, as configured" in log


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (("--kv-mode", "x"), 78, "none of auto, unified, streams"),
        (("--draft-model", "/nope.gguf"), 66, "/nope.gguf"),
        (("--adapter", "/nope.gguf"), 66, "/nope.gguf"),
    ],
)
def test_wrong_settings_are_said(
    cli: Cli, options: tuple[str, str], exit_code: int, said: str
) -> None:
    done = cli.run("serve", gguf(cli), "--port", str(free_port()), *options)
    assert (done.returncode, said in done.stderr) == (exit_code, True), done.stderr
    assert "hint:" in done.stderr


def test_a_model_is_no_adapter(cli: Cli) -> None:
    file = gguf(cli)
    done = cli.run("serve", file, "--port", str(free_port()), "--adapter", file)
    assert done.returncode == 65
    assert "adapter" in done.stderr
