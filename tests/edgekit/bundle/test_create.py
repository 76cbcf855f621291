"""Bundles of real model files: what is in them, twice the same bytes, and going on after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.bundle import keys, seal
from edgekit.bundle.create import JOURNAL, Item, create
from edgekit.bundle.layout import FILE_PATH, MODEL_ARTIFACT, Layout
from edgekit.bundle.model import models_of
from edgekit.catalogue import find_model
from edgekit.errors import EdgekitError
from edgekit.store import Entry
from edgekit_quantize import convert, read_header
from tests.support.cli import POCKET, SOURCES

SPLIT = 2_500_000


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    path = tmp_path_factory.mktemp("store") / "pocket.gguf"
    made = convert(POCKET, path, "Q8_0")
    entry = Entry(
        model="pocket",
        filetype="Q8_0",
        sha256=made.sha256,
        file_bytes=made.file_bytes,
        tensor_bytes=made.tensor_bytes,
        source="test",
        made_by="test",
    )
    return Item(find_model("pocket"), entry, path, {"LICENSE": b"terms\n"})


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.generate(tmp_path / "k.pem", tmp_path / "k.pub")
    return tmp_path / "k.pem"


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_bundle_holds_the_model_in_pieces_that_fit(
    item: Item, key_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "pocket.edgekit"
    done = create(root, [item], keys.read_private(key_file), split_bytes=SPLIT)
    assert done.signed
    trust = keys.load_trust(tmp_path, (tmp_path / "k.pub",))
    seal.check_bytes(root, seal.read_seal(root, trust).digests)
    layout = Layout(root)
    (model,) = models_of(layout)
    assert model.entry == item.entry
    assert len(model.files) > 2
    assert all(file.size <= SPLIT for file in model.files)
    for number, file in enumerate(model.files):
        header = read_header(layout.blob(file.digest))
        assert header.metadata["split.no"] == number
        assert file.annotations[FILE_PATH].startswith(f"pocket-Q8_0-{number + 1:05d}-of-")
    assert layout.blob(model.documents["LICENSE"].digest).read_bytes() == b"terms\n"
    assert not list(root.rglob("*.partial"))
    assert not (root / JOURNAL).exists()


def test_two_bundles_of_the_same_things_are_the_same_bytes(
    item: Item, key_file: Path, tmp_path: Path
) -> None:
    key = keys.read_private(key_file)
    for name in ("one", "two"):
        create(tmp_path / name, [item], key, split_bytes=SPLIT, texts={"START-HERE.txt": b"go"})
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_the_layout_is_what_the_specifications_ask_for(
    item: Item, key_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "b"
    create(root, [item], None)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    assert index["schemaVersion"] == 2
    (entry,) = index["manifests"]
    assert entry["artifactType"] == MODEL_ARTIFACT
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "pocket-Q8_0"
    manifest = json.loads((root / "blobs/sha256" / entry["digest"][7:]).read_text())
    config = json.loads((root / "blobs/sha256" / manifest["config"]["digest"][7:]).read_text())
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["config"]["format"] == "gguf"


def test_a_folder_with_other_things_in_it_is_refused(item: Item, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(EdgekitError) as error:
        create(tmp_path, [item], None)
    assert error.value.code == "not_empty"
    root = tmp_path / "b"
    create(root, [item], None)
    with pytest.raises(EdgekitError) as again:
        create(root, [item], None)
    assert again.value.code == "not_empty"


CHILD = """
import json, sys
from pathlib import Path
from edgekit.bundle import keys
from edgekit.bundle.create import Item, create
from edgekit.catalogue import find_model
from edgekit.store import Entry
root, gguf, key, entry = sys.argv[1:]
item = Item(find_model("pocket"), Entry(**json.loads(entry)), Path(gguf), {"LICENSE": b"terms\\n"})
print("ready", flush=True)
create(Path(root), [item], keys.read_private(Path(key)), split_bytes=%d)
print("done", flush=True)
"""


def test_kills_at_random_points_are_gone_on_from(
    item: Item, key_file: Path, tmp_path: Path
) -> None:
    from dataclasses import asdict

    create(tmp_path / "good", [item], keys.read_private(key_file), split_bytes=SPLIT)
    command = [
        *(sys.executable, "-c", CHILD % SPLIT),
        *(str(tmp_path / "b"), str(item.gguf), str(key_file), json.dumps(asdict(item.entry))),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    rng = random.Random(3)
    for _ in range(8):
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(rng.random() * 0.12)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if not (tmp_path / "b" / JOURNAL).exists() and (tmp_path / "b" / seal.SUMS).exists():
            break
    else:
        subprocess.run(command, env=env, check=True)
    assert content(tmp_path / "b") == content(tmp_path / "good")


def test_half_a_blob_is_continued_and_a_wrong_half_replaced(tmp_path: Path) -> None:
    chunks = [bytes([n]) * 1000 for n in range(9)]
    whole = b"".join(chunks)
    for left in (b"", whole[:4500], whole[:4500] + b"x" * 9000, b"x" * 100, whole + b"more"):
        layout = Layout(tmp_path / f"{len(left)}")
        layout.start()
        (layout.root / "blobs" / ".name.partial").write_bytes(left)
        found = layout.add(chunks, "text/plain", {FILE_PATH: "name"})
        assert layout.blob(found.digest).read_bytes() == whole
        assert found.size == len(whole)
