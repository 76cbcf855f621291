"""Bundles that carry only what is new: what is in them, and what the other side asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bundle import keys, seal
from edgekit.bundle.create import Item, create
from edgekit.bundle.delta import NEEDS, read_base, read_needs
from edgekit.bundle.install import install
from edgekit.catalogue import find_model
from edgekit.errors import EdgekitError
from edgekit.store import Entry, Store
from edgekit_quantize import convert
from tests.support.cli import POCKET, Cli

SPLIT = 2_500_000


class Maker:
    """The connected side: a key, and model files."""

    def __init__(self, home: Path) -> None:
        self.home = home
        keys.generate(home / "k.pem", home / "k.pub")
        self.key = keys.read_private(home / "k.pem")
        self.trust = keys.load_trust(home, (home / "k.pub",))

    def item(self, filetype: str, document: bytes = b"terms\n") -> Item:
        path = self.home / f"{filetype}.gguf"
        made = convert(POCKET, path, filetype)
        entry = Entry("pocket", filetype, made.sha256, made.file_bytes, made.tensor_bytes, "t", "t")
        return Item(find_model("pocket"), entry, path, {"LICENSE": document})


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("maker"))


@pytest.fixture(scope="module")
def item(maker: Maker) -> Item:
    return maker.item("Q8_0")


@pytest.fixture(scope="module")
def old(maker: Maker, item: Item) -> Path:
    create(maker.home / "old", [item], maker.key, split_bytes=SPLIT)
    return maker.home / "old"


def room(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("by", ["folder", "sums"])
def test_only_what_is_new_is_carried(
    maker: Maker, item: Item, old: Path, tmp_path: Path, by: str
) -> None:
    base = read_base(old if by == "folder" else old / seal.SUMS, maker.trust)
    assert bool(base.keys) == (by == "folder")
    new = replace(item, documents={"LICENSE": b"other terms\n"})
    create(tmp_path / "new", [new, maker.item("Q4_K_M")], maker.key, split_bytes=SPLIT, base=base)
    create(tmp_path / "whole", [new, maker.item("Q4_K_M")], maker.key, split_bytes=SPLIT)
    needs = read_needs(tmp_path / "new")
    assert len(needs) >= 3
    assert room(tmp_path / "whole") - room(tmp_path / "new") > sum(needs.values()) * 0.999
    assert item.entry.file_bytes * 0.85 < sum(needs.values()) <= item.entry.file_bytes * 1.01
    # The index lists all of it: only the model files and the note of them differ.
    index = [(tmp_path / name / "index.json").read_bytes() for name in ("new", "whole")]
    assert index[0] == index[1]
    seal.check_bytes(tmp_path / "new", seal.read_seal(tmp_path / "new", maker.trust).digests)
    # A machine without the older one is told so before anything is written.
    with pytest.raises(EdgekitError) as missing:
        install(tmp_path / "new", Store(tmp_path / "empty"), maker.trust)
    assert missing.value.code == "base_missing"
    assert not (tmp_path / "empty").exists()
    store = Store(tmp_path / "store")
    install(old, store, maker.trust)
    done = install(tmp_path / "new", store, maker.trust)
    assert {m.entry.filetype for m in done.models} == {"Q8_0", "Q4_K_M"}
    kept = next(m for m in done.models if m.entry.filetype == "Q8_0")
    assert kept.how.count("kept") >= len(needs)
    assert store.find("pocket", "Q8_0") is not None
    assert store.find("pocket", "Q4_K_M") is not None


def test_a_changed_file_in_the_store_does_not_count(
    maker: Maker, item: Item, old: Path, tmp_path: Path
) -> None:
    create(tmp_path / "new", [item], maker.key, split_bytes=SPLIT, base=read_base(old, maker.trust))
    store = Store(tmp_path / "store")
    install(old, store, maker.trust)
    digest = next(iter(read_needs(tmp_path / "new")))
    blob = store.root / "blobs" / f"{digest}.gguf"
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.unlink()
    blob.write_bytes(data)
    with pytest.raises(EdgekitError) as error:
        install(tmp_path / "new", store, maker.trust)
    assert error.value.code == "base_missing"


def test_a_delta_of_a_delta_and_the_same_bytes_twice(
    maker: Maker, item: Item, old: Path, tmp_path: Path
) -> None:
    base = read_base(old, maker.trust)
    for name in ("one", "two"):
        create(tmp_path / name, [item], maker.key, split_bytes=SPLIT, base=base)
    for file in (tmp_path / "one").rglob("*"):
        if file.is_file():
            other = tmp_path / "two" / file.relative_to(tmp_path / "one")
            assert file.read_bytes() == other.read_bytes()
    again = read_base(tmp_path / "one", maker.trust)
    create(tmp_path / "three", [item], maker.key, split_bytes=SPLIT, base=again)
    assert read_needs(tmp_path / "three") == read_needs(tmp_path / "one")


def test_a_list_of_needs_that_was_changed_is_refused(
    maker: Maker, item: Item, old: Path, tmp_path: Path
) -> None:
    root = tmp_path / "new"
    create(root, [item], maker.key, split_bytes=SPLIT, base=read_base(old, maker.trust))
    record = json.loads((root / NEEDS).read_text())
    record["blobs"] = record["blobs"][1:]
    (root / NEEDS).write_text(json.dumps(record))
    with pytest.raises(EdgekitError) as error:
        install(root, Store(tmp_path / "store"), maker.trust)
    assert error.value.code == "bad_layout"


def test_an_untrusted_base_is_not_built_on(item: Item, old: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError) as error:
        read_base(old, keys.load_trust(tmp_path))
    assert error.value.code == "key_not_trusted"
    with pytest.raises(EdgekitError) as missing:
        read_base(tmp_path / "nothing", keys.load_trust(tmp_path))
    assert missing.value.code == "no_base"


def test_the_command(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.json("bundle", "keygen", "ops")
    made = ["bundle", "create", "pocket:Q8_0", "--key", "ops.pem", "--no-verify", "--output"]
    whole = cli.json(*made, "old")
    delta = cli.json(*made, "new", "--since", "old")
    assert delta["bytes"] < whole["bytes"] / 50
    there = Cli(tmp_path / "there")
    (there.config / "trust.d").mkdir(parents=True)
    (there.config / "trust.d" / "ops.pub").write_bytes((tmp_path / "ops.pub").read_bytes())
    refused = there.run("bundle", "check", tmp_path / "new")
    assert refused.returncode == 66
    assert "install the older bundle first" in refused.stderr
