"""The command as its users run it: keys, a bundle of pocket, and what the other side says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli import Cli


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    cli = Cli(tmp_path_factory.mktemp("bundle"))
    key = cli.json("bundle", "keygen", "ops")
    assert (key["private"], key["public"]) == ("ops.pem", "ops.pub")
    record = cli.json("bundle", "create", "pocket:Q8_0", "--key", "ops.pem", "--output", "p")
    assert record["signed"]
    assert record["models"] == [{"model": "pocket", "filetype": "Q8_0"}]
    return cli


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    plan = cli.json("bundle", "create", "pocket", "--dry-run")
    assert plan["path"].startswith("pocket-")
    assert plan["models"][0]["reason"]
    assert not list(tmp_path.glob("*.edgekit"))
    assert not cli.store.exists()


def test_the_other_side_asks_for_the_key_first(made: Cli, tmp_path: Path) -> None:
    there = Cli(tmp_path)
    refused = there.run("bundle", "check", made.home / "p")
    assert refused.returncode == 65
    assert "is not one this machine trusts" in refused.stderr
    (there.config / "trust.d").mkdir(parents=True)
    shutil.copy(made.home / "ops.pub", there.config / "trust.d")
    record = there.json("bundle", "check", made.home / "p")
    assert record["signer"] == "ops"
    assert record["models"][0]["model"] == "pocket"


def test_a_changed_weight_is_named(made: Cli, tmp_path: Path) -> None:
    shutil.copytree(made.home / "p", tmp_path / "p")
    blob = max((tmp_path / "p" / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    done = Cli(tmp_path).run(
        "bundle", "verify", tmp_path / "p", "--trust", made.home / "ops.pub", "--json"
    )
    assert done.returncode == 65
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "files_differ"
    assert blob.name in error["message"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("explode", "x"), 2), (("check",), 2), (("create",), 2), (("check", "nowhere"), 66)],
)
def test_what_cannot_be_done_says_so(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    done = Cli(tmp_path).run("bundle", *arguments)
    assert done.returncode == code
    assert "hint:" in done.stderr
