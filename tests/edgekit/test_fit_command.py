"""`edgekit fit` on the command line: targets, groups of cards, tables of devices."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.cli import Cli


@pytest.fixture
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("model", ["pocket", "llama-4-scout"])
def test_all_devices_are_one_line_each(cli: Cli, model: str) -> None:
    lines = cli.run("fit", model, "--all-devices").stdout.splitlines()
    assert all(len(line) <= 100 for line in lines)
    named = [line.split()[0] for line in lines if len(line.split()) > 1]
    assert len([n for n in named if n == "nvidia-a10"]) == 1
    assert len([n for n in named if n == "mcu-esp32-s3"]) == 1


def test_what_does_not_fit_says_what_would(cli: Cli) -> None:
    asked = ("fit", "llama-4-scout", "--device", "a10")
    text = cli.run(*asked).stdout
    assert "--gpus " in text
    assert "--device " in text
    assert all(len(line) <= 100 for line in text.splitlines())
    options = [way["option"] for way in cli.json(*asked)["remedies"]]
    more = next(option.split() for option in options if option.startswith("--gpus"))
    row = cli.json(*asked, *more)["rows"][0]
    assert (row["verdict"], row["device"]) == ("fits", f"nvidia-a10*{more[1]}")


def test_a_target_binds(cli: Cli) -> None:
    row = cli.json("fit", "mistral-3-small", "--device", "a10", "--tok-s", "500")["rows"][0]
    assert (row["verdict"], row["binding"]) == ("tight", "speed")
    assert "500 were asked for" in row["reason"]


def test_a_group_is_not_counted_again(cli: Cli) -> None:
    done = cli.run("fit", "pocket", "--device", "a10+l4", "--gpus", "2")
    assert done.returncode == 2
    assert "a10*2+l4" in done.stderr


def test_planning_imports_no_tokenizer_and_convert_is_found_both_ways() -> None:
    code = (
        "import sys, edgekit_quantize\n"
        "from edgekit_quantize import convert\n"
        "heavy = {'tokenizer', 'planning', 'mmproj', 'checkpoint', 'rows', 'llama'}\n"
        "print(sorted(m for m in heavy if f'edgekit_quantize.{m}' in sys.modules))\n"
        "from edgekit_quantize.convert import Converted, convert as same\n"
        "print(convert is same is edgekit_quantize.convert, callable(convert))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True True"]
