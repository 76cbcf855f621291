"""The command line from bundle to endpoint: what was installed is found and served, offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from edgekit.bundle import keys
from edgekit.bundle.create import Item, create
from edgekit.bundle.install import install
from edgekit.catalogue import find_model
from edgekit.store import Entry, Store
from edgekit_quantize import convert
from tests.support.cli import POCKET, Cli, free_port


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle of pocket in several files; its key lies beside it as k.pub."""
    home = tmp_path_factory.mktemp("bundle")
    made = convert(POCKET, home / "pocket.gguf", "Q8_0")
    entry = Entry("pocket", "Q8_0", made.sha256, made.file_bytes, made.tensor_bytes, "x", "test")
    keys.generate(home / "k.pem", home / "k.pub")
    item = Item(find_model("pocket"), entry, home / "pocket.gguf", {"LICENSE.txt": b"terms\n"})
    create(home / "b", [item], keys.read_private(home / "k.pem"), split_bytes=2_500_000)
    return home / "b"


def test_a_dry_run_says_what_would_be_copied(bundle: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    key = ("--trust", bundle.with_name("k.pub"), "--dry-run")
    plan = cli.json("bundle", "install", bundle, *key)
    assert plan["models"][0]["files"] > 2
    assert plan["enough"]
    assert cli.json("bundle", "install", bundle, *key, "--in-place")["needed_bytes"] == 0
    assert not cli.store.exists()
    refused = cli.run("bundle", "install", bundle)
    assert refused.returncode == 65


@pytest.mark.parametrize("in_place", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_was_installed_is_served_from_its_blobs(
    bundle: Path, tmp_path: Path, in_place: bool
) -> None:
    cli = Cli(tmp_path)
    medium = shutil.copytree(bundle, tmp_path / "stick")
    more = ("--in-place",) if in_place else ()
    record = cli.json("bundle", "install", medium, "--trust", bundle.with_name("k.pub"), *more)
    (model,) = record["models"]
    assert record["copied_bytes"] == 0
    assert set(model["how"]) <= ({"in place"} if in_place else {"hardlink", "reflink"})
    assert model["medium"] == (str(medium) if in_place else None)
    port = free_port()
    process = cli.start(
        "deploy", "pocket:Q8_0", "--offline", "--no-measure", "--json", "--port", str(port)
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        ready = json.loads("".join(lines) or "null")
        assert ready, process.communicate()
        assert ready["store_hit"]
        asked = {"model": "pocket", "prompt": "def ", "max_tokens": 4, "temperature": 0}
        with httpx.Client(trust_env=False, timeout=60) as client:
            answer = client.post(f"http://127.0.0.1:{port}/v1/completions", json=asked)
            assert answer.status_code == 200
            tags = client.get(f"http://127.0.0.1:{port}/api/tags").json()["models"]
        assert tags[0]["size"] == model["file_bytes"]
        mapped = [Path(m.split(maxsplit=5)[5]) for m in maps_of(process.pid) if ".gguf" in m]
        mapped += [Path(m.split(maxsplit=5)[5]) for m in maps_of(process.pid) if "/sha256/" in m]
        folder = medium / "blobs/sha256" if in_place else cli.store / "blobs"
        assert {path.parent for path in mapped} == {folder}
        assert len(set(mapped)) > 2
    finally:
        process.kill()
        process.communicate()
    quiet = cli.json("store", "verify")
    assert quiet["problems"] == []
    if in_place:
        shutil.rmtree(medium)
        gone = cli.run("deploy", "pocket:Q8_0", "--offline", "--no-measure", "--json")
        assert gone.returncode == 66
        error = json.loads(gone.stdout)["error"]
        assert error["code"] == "medium_missing"
        assert str(medium) in error["message"]


def maps_of(pid: int) -> list[str]:
    """The memory maps of a process and of all below it."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            lines += maps_of(int(child))
    return lines


def test_a_damaged_head_is_found_at_the_start(bundle: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    store = Store(cli.store)
    medium = shutil.copytree(bundle, tmp_path / "stick")
    trust = keys.load_trust(tmp_path, (bundle.with_name("k.pub"),))
    entry = install(medium, store, trust).models[0].entry
    blob = store.blobs(entry)[2]
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    done = cli.run("deploy", "pocket:Q8_0", "--offline", "--no-measure", "--json", "--no-stay")
    assert done.returncode == 65
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "store_damaged"
    assert blob.name in error["message"]
    assert "edgekit bundle install" in error["hint"]
