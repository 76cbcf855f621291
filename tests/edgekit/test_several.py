"""Several models on one machine: shares of the memory, roles, and the real commands."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from edgekit.budget import device_budget
from edgekit.catalogue import find_device, find_model
from edgekit.errors import NoDeviceError, UsageError
from edgekit.facts import GIB
from edgekit.serve_child import from_request, to_request
from edgekit.several import (
    Share,
    Wanted,
    left_after,
    loaded_at_start,
    named,
    roles_of,
    share,
    with_roles,
)
from edgekit_server import EngineConfig, ServeConfig
from edgekit_server.config import ModelConfig
from tests.support.cli import POCKET, Cli, free_port

TABLE = f"""
[models.pocket]
filetype = "Q4_0"
ctx = 2048
users = 2
roles = ["chat"]

[models.mine]
source = "{POCKET}"
filetype = "Q8_0"
ctx = 1024
users = 1
roles = ["completion"]
pin = true
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def want(name: str, **more: object) -> Wanted:
    return replace(Wanted(find_model(name), users=2), **more)


def total(shares: list[Share]) -> int:
    return sum(s.choice.plan.parts[0].total for s in shares)


@pytest.mark.parametrize("device_name", ["a10", "rtx-4090", "m2-max"])
@pytest.mark.parametrize("names", [("mistral-3-small", "pocket"), ("pocket", "qwen2.5-coder-7b")])
def test_together_they_take_no_more_than_there_is(device_name: str, names: tuple[str, ...]) -> None:
    device = find_device(device_name)
    budget = device_budget(device).bytes
    assert budget is not None
    shares = share([want(name) for name in names], device)
    assert [s.wanted.card.id for s in shares] == [find_model(name).id for name in names]
    assert all(s.together for s in shares)
    assert total(shares) <= budget
    assert all(s.choice.plan.fits for s in shares)


def test_the_first_leaves_room_for_the_second() -> None:
    device = find_device("a10")
    alone = share([want("mistral-3-small")], device)[0]
    first, second = share([want("mistral-3-small"), want("qwen2.5-coder-7b")], device)
    assert first.choice.plan.total < alone.choice.plan.total
    assert second.choice.n_ctx >= 2 * 4096
    assert f"alone it would be {alone.choice.filetype}" in first.reason


def test_what_does_not_fit_beside_the_others_takes_turns() -> None:
    device = find_device("a10")
    wanted = [want("mistral-3-small", filetype="Q5_K_M"), want("qwen2.5-coder-7b", filetype="F16")]
    first, second = share(wanted, device)
    assert (first.together, second.together) == (True, False)
    assert "mistral-small-24b-2501" in second.reason
    budget = device_budget(device).bytes
    assert budget is not None
    assert second.choice.plan.total <= budget < total([first, second])
    # One that may not go leaves no turn.
    with pytest.raises(NoDeviceError):
        share([replace(wanted[0], pinned=True), wanted[1]], device)


def test_what_is_left_keeps_the_spare_of_the_whole() -> None:
    for name in ("a10", "m2-max"):
        device = find_device(name)
        before = device_budget(device).bytes
        plan = want("pocket", n_ctx=8192).choose(device).plan
        assert before is not None
        for plans in ([plan], [plan] * 3):
            after = device_budget(left_after(device, plans)).bytes
            assert after is not None
            assert abs(after - (before - len(plans) * plan.parts[0].total)) <= 8
    assert left_after(device, []) is device
    unknown = replace(find_device("a10"), memory_bytes=None, usable_bytes=None, free_bytes=None)
    assert left_after(unknown, [plan]) is unknown
    small = replace(find_device("a10"), free_bytes=2 * GIB)
    assert device_budget(left_after(small, [plan] * 1000)).bytes == 0


def test_who_is_loaded_at_start() -> None:
    sizes = {"a": 4, "b": 3, "c": 5, "d": 1}
    assert loaded_at_start(sizes, ["a"], 9) == {"a", "b", "d"}
    assert loaded_at_start(sizes, ["a", "c"], 9) == {"a", "c"}
    # Where nobody knows how much there is, nothing more is risked.
    assert loaded_at_start(sizes, ["a"], None) == {"a"}


def test_code_goes_to_those_who_were_trained_for_it() -> None:
    talks, codes, both = want("mistral-3-small"), want("qwen2.5-coder-7b"), want("pocket")
    assert [w.roles for w in with_roles([talks, codes])] == [("chat",), ("completion",)]
    for others in ([talks], [codes, both], [replace(talks, roles=("chat",)), codes]):
        assert with_roles(others) == others


def test_roles_and_names() -> None:
    names = ["a", "b=c"]
    assert roles_of(["a=chat", "b=c=completion,embeddings", "a=rerank"], names) == {
        "a": ("chat", "rerank"),
        "b=c": ("completion", "embeddings"),
    }
    for wrong in ("a", "x=chat", "a=talk", "=chat"):
        with pytest.raises(UsageError):
            roles_of([wrong], names)
    assert named(["a"], names, "--pin") == {"a"}
    with pytest.raises(UsageError, match="--pin x"):
        named(["x"], names, "--pin")


def test_settings_of_several_reach_the_server_as_they_are() -> None:
    models = tuple(
        ModelConfig(
            EngineConfig(Path(f"/{name}.gguf"), name),
            aliases=(name * 2,),
            roles=("chat", "rerank"),
            pinned=True,
            memory_bytes=3,
        )
        for name in "ab"
    )
    config = ServeConfig(models[0].engine, models=models, memory_budget_bytes=7, idle_unload_s=1.5)
    assert from_request(json.loads(json.dumps(to_request(config)))) == config


def test_two_models_of_the_table_are_deployed(cli: Cli) -> None:
    cli.config.mkdir()
    (cli.config / "config.toml").write_text(TABLE)
    process = cli.start("deploy", "--port", str(free_port()), "--no-measure", "--json")
    assert process.stdout is not None
    try:
        lines: list[str] = []
        while not lines or lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        record = json.loads("".join(lines))
        assert record["schema"] == "edgekit.deploy/1", record
        assert [record["model"], record["others"][0]["model"]] == ["pocket", "mine"]
        url = record["url"]
        models = httpx.get(f"{url}/models").json()["data"]
        assert [(m["id"], m["status"]["value"], m["roles"]) for m in models] == [
            ("pocket", "loaded", ["chat"]),
            ("mine", "loaded", ["completion"]),
        ]
        assert [m["context_length"] for m in models] == [2048, 1024]
        for path, asked, name in (
            ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, "pocket"),
            ("completions", {"prompt": "def "}, "mine"),
        ):
            answer = httpx.post(f"{url}/{path}", json={**asked, "max_tokens": 2}, timeout=60)
            assert answer.json()["model"] == name
        load = ("--users", "1", "--requests", "1", "--prompt-tokens", "16", "--output-tokens", "2")
        bench = cli.json("bench", "mine", *load)
        assert (bench["model"], bench["filetype"]) == ("mine", "Q8_0")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert list((cli.data / "running").iterdir()) == []
    finally:
        process.kill()
        process.communicate()


def test_a_plan_for_two(cli: Cli) -> None:
    arguments = ("deploy", "mistral-3-small", "qwen2.5-coder-7b", "--device", "a10", "--dry-run")
    record = cli.json(*arguments)
    plans = [record["plan"], *(other["plan"] for other in record["others"])]
    assert [p["model"] for p in plans] == ["mistral-small-24b-2501", "qwen2.5-coder-7b"]
    said = cli.run(*arguments).stdout
    assert all(len(line) <= 100 for line in said.splitlines())
    assert said.count("Model ") == said.count("Choice ") == 2


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[models.pocket]\nroles = ["talk"]\n', "talk"),
        ("[models.pocket]\nctxx = 1\n", "ctxx is not known"),
        ("[models.pocket]\nctx = true\n", "whole number"),
        ("[models.pocket]\nctx = 3\n", "at least 256"),
        ("[models]\nnothing = 1\n", "nothing"),
        ("", "no model is named"),
    ],
)
def test_tables_that_mean_nothing(cli: Cli, table: str, said: str) -> None:
    cli.config.mkdir()
    (cli.config / "config.toml").write_text(table)
    done = cli.run("deploy", "--dry-run")
    assert done.returncode in (2, 78)
    assert said in done.stderr
    assert "hint:" in done.stderr


def test_two_files_are_served(cli: Cli) -> None:
    files = [cli.home / "a.gguf", cli.home / "b.gguf"]
    for file in files:
        assert cli.run("quantize", POCKET, file, "--filetype", "Q4_0").returncode == 0
    settings = ("--role", "b=completion", "--memory-budget", "0.2", "--idle-unload", "5")
    sizes = ("--ctx", "512", "--users", "1", "--no-canary")
    process = cli.start("serve", *files, *settings, *sizes, "--port", str(free_port()), "--json")
    assert process.stdout is not None
    try:
        lines: list[str] = []
        while not lines or lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        record = json.loads("".join(lines))
        assert (record["model"], record["models"]) == ("a", ["a", "b"])
        body = {"prompt": "def ", "max_tokens": 1}
        answer = httpx.post(f"{record['url']}/completions", json=body, timeout=60).json()
        assert answer["model"] == "b"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def test_files_that_cannot_be_told_apart(cli: Cli) -> None:
    file = cli.home / "a.gguf"
    file.write_bytes(b"GGUF")
    for options, said in (
        ((file, file), "same name"),
        ((file, "--model-id", "x", "--model-id", "y"), "2 names for 1 files"),
        ((file, file, "--model-id", "b", "--adapter", file), "belong to one model"),
        ((file, "--pin", "b"), "--pin b"),
    ):
        done = cli.run("serve", *options, "--port", str(free_port()))
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
