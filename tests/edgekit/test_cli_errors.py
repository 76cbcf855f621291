"""Each failure of the command line: exit code, one sentence, what to do, nothing left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from edgekit.cli import run
from tests.support.cli import POCKET, Cli, free_port, until

SHARD = "model-00001-of-00002.safetensors"
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of pocket that a test may spoil."""
    return shutil.copytree(POCKET, tmp_path / "checkpoint")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def inside(cli: Cli, *arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process, which spares a third of a second; exit code, out, err."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, cli.environment()))
        stack.enter_context(contextlib.chdir(cli.home))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = run(list(map(str, arguments)))
    signal.signal(signal.SIGTERM, before)
    return code, out.getvalue(), err.getvalue()


def refused(cli: Cli, exit_code: int, *arguments: str | Path, code: str | None = None) -> str:
    """Run a command that must fail, as a person and as a script; return what the person saw."""
    found, _, said = inside(cli, *arguments)
    assert found == exit_code, said
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], said
    assert all(len(line) > 12 for line in lines)
    found, printed, _ = inside(cli, *arguments, "--json")
    assert found == exit_code
    error = json.loads(printed)["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert code in (None, error["code"])
    assert all(error.values())
    return said


def test_a_real_process_ends_with_the_code(cli: Cli) -> None:
    done = cli.run("fit", "no-such-model")
    assert (done.returncode, done.stdout) == (66, "")
    assert re.fullmatch(r"error: .+\nhint: .+\n", done.stderr)
    done = cli.run("fit", "no-such-model", "--json")
    assert (done.returncode, done.stderr) == (66, "")
    assert json.loads(done.stdout)["error"]["code"] == "model_unknown"


# fmt: off
SIMPLE = [
    (2, "usage", ["deplyo"], "deplyo"),
    (2, "usage", ["fit"], "model"),
    (2, "usage", ["fit", "pocket", "--user", "3"], "--users"),
    (2, "usage", ["fit", "pocket", "--users", "0"], "--users"),
    (2, "bad_users", ["bench", "--users", "1,x"], "1,2,4,8"),
    (2, "two_filetypes", ["fit", "pocket:Q8_0", "--filetype", "Q4_0", "--device", "a10"], "once"),
    (2, "bad_model_name", ["fit", ":Q8_0", "--device", "a10"], "MODEL:FILETYPE"),
    (2, "other_device", ["deploy", "pocket", "--device", "a10"], "--dry-run"),
    (2, "ctx_beyond_training", ["fit_deploy"], "--ctx"),
    (66, "model_unknown", ["fit", "mistral-3-smal", "--device", "a10"], "mistral-3-small"),
    (66, "device_unknown", ["fit", "pocket", "--device", "rtx-409"], "rtx-4090"),
    (66, "file_type_unknown", ["fit", "pocket:Q4_K_L", "--device", "a10"], "Q4_K_M"),
    (66, "file_type_unknown", ["quantize", str(POCKET), "--filetype", "Q4_K_L"], "Q4_K_M"),
    (66, "model_not_published", ["deploy", "code-llama-4"], "--source"),
    (66, "model_missing", ["serve", "none.gguf"], "none.gguf"),
    (66, "source_missing", ["quantize", "none"], "config.json"),
    (66, "source_missing", ["deploy", "pocket", "--source", "none"], "config.json"),
    (66, "not_running", ["bench", "pocket"], "edgekit deploy pocket"),
    (69, "does_not_fit", ["deploy", "mistral-3-small:F16", "--device", "a10", "--dry-run"], "A10"),
    (70, "no_server", ["bench", "http://127.0.0.1:9/v1"], "edgekit deploy"),
    (78, "key_required", ["deploy", "pocket", "--host", "0.0.0.0"], "EDGEKIT_API_KEY"),
    (78, "key_required", ["serve", __file__, "--host", "0.0.0.0"], "EDGEKIT_API_KEY"),
    (78, "bad_host", ["deploy", "pocket", "--host", "192.0.2.1", "--api-key", "k"], "--host"),
]
# fmt: on


@pytest.mark.parametrize(("exit_code", "code", "arguments", "said"), SIMPLE)
def test_exit_code_sentence_and_hint(
    exit_code: int, code: str, arguments: list[str], said: str, cli: Cli
) -> None:
    if arguments == ["fit_deploy"]:
        arguments = ["deploy", "pocket", "--device", "a10", "--dry-run", "--ctx", "1000000"]
    assert said in refused(cli, exit_code, *arguments, code=code)
    assert list(cli.home.iterdir()) == []


def test_weights_that_are_not_here(cli: Cli) -> None:
    """Known before anything long begins, on a machine that could run the model."""
    done = cli.run("deploy", "mistral-3-small", "--ctx", "4096", "--users", "1", "--offline")
    if done.returncode == 69:
        pytest.skip("this machine is too small to get that far")
    assert done.returncode == 66
    assert "mistralai/Mistral-Small-24B-Instruct-2501" in done.stderr
    assert "--source" in done.stderr


@pytest.mark.parametrize("command", ["deploy", "serve"])
def test_a_taken_port_is_noticed_first(command: str, taken_port: int, cli: Cli) -> None:
    target = {"deploy": "pocket", "serve": __file__}[command]
    said = refused(cli, 75, command, target, "--port", str(taken_port), code="port_in_use")
    assert f"--port {taken_port + 1}" in said
    assert list(cli.home.iterdir()) == []


def test_a_file_that_is_no_model(cli: Cli) -> None:
    done = cli.run("serve", __file__, "--port", str(free_port()))
    assert done.returncode == 65
    # Above them are log lines.
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


# fmt: off
CONFIGS = [
    ("[deploy]\nuser = 2\n", "did you mean users"),
    ("[deploi]\nusers = 2\n", "did you mean deploy"),
    ("[deploy]\njson = true\n", "known: "),
    ("deploy = 1\n", "[deploy]"),
    ("[deploy\n", "mend the file"),
]
# fmt: on


@pytest.mark.parametrize(("text", "said"), CONFIGS)
def test_a_wrong_setting_is_named(text: str, said: str, cli: Cli) -> None:
    cli.config.mkdir()
    (cli.config / "config.toml").write_text(text)
    error = refused(cli, 78, "devices", code="bad_config_file")
    assert said in error
    assert str(cli.config / "config.toml") in error


def test_a_missing_shard(checkpoint: Path, cli: Cli) -> None:
    (checkpoint / SHARD).unlink()
    assert SHARD in refused(cli, 66, "quantize", checkpoint, cli.home / "p.gguf")
    refused(cli, 66, "deploy", "pocket", "--source", checkpoint, "--port", str(free_port()))
    assert list(cli.home.glob("*.gguf*")) == []
    assert list(cli.store.glob("blobs/*")) == []


def test_a_truncated_shard(checkpoint: Path, cli: Cli) -> None:
    os.truncate(checkpoint / SHARD, 1000)
    refused(cli, 65, "quantize", checkpoint, cli.home / "p.gguf")
    assert sorted(f.name for f in cli.home.iterdir()) == ["checkpoint"]


def test_a_checkpoint_of_another_model(checkpoint: Path, cli: Cli) -> None:
    said = refused(cli, 65, "deploy", "mistral-3-small", "--source", checkpoint, "--dry-run")
    assert "hidden_size" in said


def test_an_existing_file_is_not_replaced(cli: Cli) -> None:
    target = cli.home / "p.gguf"
    target.write_text("mine")
    refused(cli, 73, "quantize", POCKET, target, code="destination_exists")
    assert target.read_text() == "mine"
    assert cli.run("quantize", POCKET, target, "--force").returncode == 0
    assert target.stat().st_size > 1e6


def test_a_damaged_store_entry(cli: Cli) -> None:
    entry = cli.store / "index" / "pocket" / "Q4_0.json"
    entry.parent.mkdir(parents=True)
    entry.write_text("{")
    said = refused(cli, 65, "deploy", "pocket:Q4_0", "--dry-run", code="store_entry_damaged")
    assert f"delete {entry}" in said


@POSIX
@pytest.mark.parametrize("kind", ["quantize", "deploy"])
def test_a_full_disk_leaves_nothing(kind: str, cli: Cli) -> None:
    """A limit on file sizes stands in for the disk: writing fails half-way in the same place."""
    rest = {
        "quantize": ["quantize", str(POCKET), str(cli.home / "p.gguf"), "--filetype", "F16"],
        "deploy": ["deploy", "pocket:F16", "--port", str(free_port())],
    }[kind]
    limited = ["bash", "-c", 'ulimit -f 4000; exec "$@"', "bash", *cli.command(*rest)]
    done = subprocess.run(limited, env=cli.environment(), capture_output=True, text=True)
    assert done.returncode == 73, done.stderr
    assert "hint: free some space" in done.stderr
    assert [f for f in cli.home.rglob("*") if f.is_file() and f.suffix != ".lock"] == []


def converting(cli: Cli, source: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a conversion and hold its child still once it has begun to write."""
    target = cli.home / "p.gguf"
    # The slowest file type on one thread: a second or two of work.
    process = cli.start("quantize", source, target, "--filetype", "IQ4_XS", "--threads", "1")
    partial = target.with_name(".p.gguf.partial")
    until(lambda: partial.exists() or process.poll() is not None, "the partial file")
    assert process.poll() is None, process.communicate()
    (child,) = psutil.Process(process.pid).children()
    child.suspend()
    assert not target.exists()
    return process, child


@POSIX
@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_nothing_and_says_how_to_go_on(
    sent: signal.Signals, exit_code: int, checkpoint: Path, cli: Cli
) -> None:
    process, child = converting(cli, checkpoint)
    process.send_signal(sent)
    child.resume()
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert said == "stopped; run the same command to go on\n"
    assert sorted(f.name for f in cli.home.iterdir()) == ["checkpoint"]


@POSIX
def test_a_killed_command_takes_its_converter_with_it(checkpoint: Path, cli: Cli) -> None:
    process, child = converting(cli, checkpoint)
    process.kill()
    child.resume()
    process.communicate(timeout=60)
    until(lambda: not child.is_running(), "the end of the converter")
    assert sorted(f.name for f in cli.home.iterdir()) == ["checkpoint"]


@POSIX
@pytest.mark.parametrize(
    ("how", "exit_code", "said"),
    [("truncate", 74, "got shorter"), ("SIGSEGV", 70, "SIGSEGV"), ("SIGKILL", 70, "memory")],
)
def test_the_death_of_the_converter_is_an_error(
    how: str, exit_code: int, said: str, checkpoint: Path, cli: Cli
) -> None:
    process, child = converting(cli, checkpoint)
    if how == "truncate":
        for shard in checkpoint.glob("*.safetensors"):
            os.truncate(shard, 4096)
    else:
        child.send_signal(signal.Signals[how])
    with contextlib.suppress(psutil.NoSuchProcess):  # a stopped process dies of SIGKILL at once
        child.resume()
    _, error = process.communicate(timeout=60)
    assert process.returncode == exit_code, error
    assert said in error
    assert "hint: " in error
    assert sorted(f.name for f in cli.home.iterdir()) == ["checkpoint"]


def test_a_traceback_only_when_asked_for(cli: Cli) -> None:
    done = cli.run("fit", "no-such-model", "--debug", "--device", "a10")
    assert "Traceback" in done.stderr
    cli = Cli(cli.home, {"EDGEKIT_DEBUG": "0"})
    assert "Traceback" not in cli.run("fit", "no-such-model", "--device", "a10").stderr
