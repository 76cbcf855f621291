"""The command line as a person and a script meet it: real processes, plain output, JSON."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup

from edgekit.cli import command_line
from edgekit.cli.output import wrap
from edgekit.cli.settings import read_settings
from tests.support.cli import POCKET, ROOT, Cli

COMMANDS = (
    *("pull", "store", "licence", "bundle"),
    *("deploy", "fit", "compare", "buy", "probe", "models", "devices"),
    *("quantize", "evaluate", "imatrix", "serve", "connect", "bench", "engine", "doctor"),
)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="module")
def group() -> TyperGroup:
    return command_line()


def test_help_imports_nothing_heavy(cli: Cli) -> None:
    heavy = ("rich", "httpx", "numpy", "fastapi", "uvicorn", "llama_cpp", "pydantic", "psutil")
    code = (
        "import sys\n"
        "from edgekit.cli import run\n"
        "assert run(['--help']) == 0\n"
        f"print(*(m for m in {heavy!r} if m in sys.modules), file=sys.stderr, end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=cli.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert "..." not in done.stdout.split("Commands:")[1]


def test_version(cli: Cli) -> None:
    done = cli.run("--version")
    assert re.fullmatch(r"edgekit \d+\.\d+\.\d+\n", done.stdout)


def test_a_version_in_the_environment_is_not_an_option(tmp_path: Path) -> None:
    done = Cli(tmp_path, {"EDGEKIT_VERSION": "1"}).run("devices")
    assert done.stdout.startswith("device ")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_on_one_screen(name: str, group: TyperGroup) -> None:
    command = group.commands[name]
    context = command.make_context(f"edgekit {name}", ["--help"], resilient_parsing=True)
    text = command.get_help(context)
    assert f"Example: edgekit {name}" in text
    assert len(text.splitlines()) <= 50
    assert all(len(line) <= 100 for line in text.splitlines())


def hints() -> list[tuple[str, str]]:
    """Every string of the product that tells a person what to type."""
    found: dict[tuple[str, str], None] = {}
    for folder in ("edgekit", "quantize", "server"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                said = strings(node)
                advice = isinstance(node, ast.keyword) and node.arg in ("hint", "fix")
                advice |= isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding"
                found |= {
                    (file.name, text): None
                    for text in said
                    if advice or re.search(r"\b(pass|add|set) --", text)
                }
    return list(found)


def strings(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.keyword | ast.Call | ast.Constant):
        return []
    return [
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def test_hints_name_options_and_commands_that_exist(group: TyperGroup) -> None:
    params = [p for c in group.commands.values() for p in c.params]
    options = {o for p in params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    options |= {"--debug"}
    for file, text in hints():
        if "pip install" in text:
            continue
        assert set(re.findall(r"--[a-z][a-z-]+", text)) <= options, (file, text)
        named = re.findall(r"\bedgekit ([a-z]+)\b", text)
        assert set(named) - {"asks", "converts", "is", "knows", "ships"} <= set(COMMANDS), (
            file,
            text,
        )


def test_models_and_devices_list_the_catalogue(cli: Cli) -> None:
    text = cli.run("models").stdout
    assert "mistral-3-small" in text
    assert "No public weights carry the name Code Llama 4" in text
    rows = cli.json("models")["rows"]
    assert {"pocket", "mistral-small-24b-2501"} <= {row["id"] for row in rows}
    assert "nvidia-a10" in cli.run("devices").stdout
    assert cli.json("devices", "a10")["rows"][0]["id"] == "nvidia-a10"
    shown = cli.run("models", "show", "mistral-3-small").stdout
    assert "mistral-small-24b-2501" in shown
    assert "mistralai/Mistral-Small-24B-Instruct-2501" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_fit_answers_with_every_field_of_the_contract(cli: Cli) -> None:
    record = cli.json("fit", "mistral-3-small", "--device", "a10", "--users", "4")
    assert record["schema"] == "edgekit.fit/1"
    row = record["rows"][0]
    expected = "model device filetype n_ctx users verdict binding reason file_bytes bytes"
    expected += " decode_tok_s prefill_tok_s ttft_ms offload licence cost"
    assert set(expected.split()) <= row.keys()
    assert {"weights", "kv", "compute", "overhead", "total", "budget"} <= row["bytes"].keys()
    assert {"value", "low", "high", "basis"} <= row["decode_tok_s"].keys()
    assert (row["filetype"], row["verdict"]) == ("Q5_K_M", "fits")


def test_fit_shows_the_devices_own_budget(cli: Cli) -> None:
    text = cli.run("fit", "mistral-3-small", "--device", "a10").stdout
    rows = [line.split() for line in text.splitlines() if line.startswith(("Q", "BF16", "F"))]
    # Whatever goes to the host, the budget of the card is one figure.
    assert len({row[4] for row in rows}) == 1
    assert all(len(line) <= 100 for line in text.splitlines())


def test_offload_is_an_option(cli: Cli) -> None:
    arguments = ("fit", "mistral-3-small:Q6_K", "--device", "a10", "--offload", "30")
    row = cli.json(*arguments)["rows"][0]
    assert (row["verdict"], row["offload"]) == ("tight", {"n_gpu_layers": 30, "n_layers": 41})
    assert " 30/41 " in cli.run(*arguments).stdout
    plan = cli.run("deploy", *arguments[1:], "--dry-run").stdout
    assert "30 of 41 layers on the GPU" in plan


def test_without_a_command_there_is_help(cli: Cli) -> None:
    done = cli.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout


def test_a_dry_run_prints_the_plan_and_touches_nothing(cli: Cli) -> None:
    arguments = ("deploy", "mistral-3-small", "--device", "a10", "--dry-run")
    text = cli.run(*arguments).stdout
    assert all(len(line) <= 100 for line in text.splitlines())
    assert [line.split()[0] for line in text.splitlines() if line[:1].isalpha()] == [
        "Device",
        "Choice",
        "Why",
        "Licence",
        "Ceiling",
    ]
    assert "mistralai/Mistral-Small-24B-Instruct-2501@" in text
    assert "47.1 GB" in text
    assert "F32" not in text
    plan = cli.json(*arguments)["plan"]
    assert {"steps", "choice", "reason", "rejected"} <= plan.keys()
    assert list(cli.home.iterdir()) == []


def test_a_file_type_belongs_to_the_name_or_to_the_option(cli: Cli) -> None:
    arguments = ("deploy", "--device", "a10", "--dry-run")
    short = cli.json(*arguments, "pocket:q4_k_m")["plan"]["choice"]
    assert short == cli.json(*arguments, "pocket", "--filetype", "Q4_K_M")["plan"]["choice"]
    assert short["filetype"] == "Q4_K_M"


def test_flag_over_environment_over_file(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('[fit]\ndevice = "rtx-4090"\nusers = 2\n')
    row = Cli(tmp_path).json("fit", "pocket")["rows"][0]
    assert (row["device"], row["users"]) == ("nvidia-rtx-4090", 2)
    cli = Cli(tmp_path, {"EDGEKIT_FIT_USERS": "3"})
    assert cli.json("fit", "pocket")["rows"][0]["users"] == 3
    assert cli.json("fit", "pocket", "--users", "5")["rows"][0]["users"] == 5


def test_one_key_in_a_file_is_one_key(cli: Cli, group: TyperGroup) -> None:
    cli.config.mkdir()
    (cli.config / "config.toml").write_text('[serve]\napi-key = "abc"\nusers = 2\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CONFIG_DIR", str(cli.config))
        assert read_settings(group) == {"serve": {"api_key": ["abc"], "users": 2}}


def test_json_can_be_asked_for_in_the_environment(tmp_path: Path) -> None:
    cli = Cli(tmp_path, {"EDGEKIT_DEVICES_JSON": "1"})
    assert json.loads(cli.run("devices").stdout)["schema"] == "edgekit.devices/1"
    failed = cli.run("devices", "no-such-device")
    assert json.loads(failed.stdout)["error"]["code"] == "device_unknown"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str, tmp_path: Path) -> None:
    words = {"bash": "COMP_WORDS", "zsh": "_TYPER_COMPLETE_ARGS", "fish": "_TYPER_COMPLETE_ARGS"}
    asked = {
        words[shell]: "edgekit d",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = Cli(tmp_path, {"_EDGEKIT_COMPLETE": f"complete_{shell}", **asked}).run()
    assert {"deploy", "devices", "doctor"} <= set(re.findall(r"[a-z]+", done.stdout))


def test_completion_can_be_shown(cli: Cli) -> None:
    code = "from edgekit.cli import run; run(['--show-completion'])"
    bash = ["bash", "-c", f'{sys.executable} -c "{code}"; true']
    done = subprocess.run(bash, env=cli.environment(), capture_output=True, text=True)
    assert "_EDGEKIT_COMPLETE" in done.stdout or "shell" in done.stderr.lower()


def test_a_reader_that_goes_away_is_no_failure(cli: Cli) -> None:
    process = cli.start("models", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
@pytest.mark.parametrize("no_color", [True, False])
def test_a_terminal_gets_a_bar_and_no_colour_when_asked(no_color: bool, tmp_path: Path) -> None:
    import pty

    env = {"TERM": "xterm-256color", "COLUMNS": "100"} | ({"NO_COLOR": "1"} if no_color else {})
    cli = Cli(tmp_path, env)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        cli.command("quantize", POCKET, tmp_path / "p.gguf", "--filetype", "Q4_K_M"),
        env=cli.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(master)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "p.gguf" in out
    assert "\x1b" not in out
    assert b"quantize" in seen
    coloured = re.search(rb"\x1b\[(?:\d+;)*3\d(?:;\d+)*m", seen) is not None
    assert coloured is not no_color


def test_quantize_says_what_it_would_write_and_writes_it(cli: Cli) -> None:
    target = cli.home / "p.gguf"
    plan = cli.json("quantize", POCKET, target, "--filetype", "q8_0", "--dry-run")
    assert not target.exists()
    made = cli.json("quantize", POCKET, target, "--filetype", "q8_0")
    assert (made["schema"], made["path"]) == ("edgekit.quantize/1", str(target))
    assert made["tensor_bytes"] == plan["tensor_bytes"]
    assert made["file_bytes"] == target.stat().st_size
    assert [f.name for f in cli.home.iterdir()] == ["p.gguf"]


def test_wrapping_keeps_paths_whole() -> None:
    path = "/" + "very-long-folder/" * 8
    assert wrap(f"see {path} for more", 40) == ["see", path, "for more"]
    assert wrap("", 40) == [""]
