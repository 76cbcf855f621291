"""The store: what is in it, that no changed bit goes unnoticed, and what may be removed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.checkpoints import (
    MANIFEST,
    Checkpoints,
    Manifest,
    StoredFile,
    folder_name,
    read_manifest,
    to_bytes,
)
from edgekit.errors import BadDataError
from edgekit.placing import place
from edgekit.store import Entry, Store
from edgekit.store_care import collect, list_store, verify_store
from edgekit.store_use import in_use, is_used
from tests.support.cli import ROOT

COMMIT = "ab" * 20
FILES = {"config.json": b"{}", "model.safetensors": b"weights " * 500, "q/LICENSE": b"text"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    add_model(store, "m", b"model of today")
    add_checkpoint(store, "org/model", FILES)
    return store


def add_model(store: Store, name: str, data: bytes) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    with store.writing(name, "Q4_0") as partial:
        partial.write_bytes(data)
        entry = Entry(name, "Q4_0", digest, len(data), len(data), "here", "test")
        return store.add(partial, entry)


def add_checkpoint(store: Store, repository: str, files: dict[str, bytes]) -> Path:
    name = folder_name(repository, COMMIT, ())
    checkpoints = Checkpoints(store.root)
    with checkpoints.fetching(name) as place_:
        for file, data in files.items():
            path = place_.files / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (place_.files / "leftover.tmp").write_bytes(b"of an earlier selection")
        return checkpoints.publish(name, manifest(repository, files)).folder


def manifest(repository: str, files: dict[str, bytes]) -> Manifest:
    stored = tuple(
        StoredFile(n, len(d), hashlib.sha256(d).hexdigest(), "sha256") for n, d in files.items()
    )
    return Manifest(repository, COMMIT, "main", ("*.json",), stored, "test")


def content(store: Store) -> list[Path]:
    """Every file that `verify` answers for."""
    folders = ("blobs", "index", "checkpoints")
    return sorted(p for f in folders for p in (store.root / f).rglob("*") if p.is_file())


def test_a_sound_store_is_sound(store: Store) -> None:
    size, problems = verify_store(store)
    assert problems == []
    assert size == len(b"model of today") + sum(map(len, FILES.values()))
    rows = {row.kind: row for row in list_store(store)}
    assert set(rows) == {"model", "checkpoint"}
    assert rows["model"].name == "m"
    assert rows["checkpoint"].name == f"org/model@{COMMIT[:12]}"
    assert all(not Path(row.path).is_absolute() for row in rows.values())


def test_an_empty_store_is_sound_and_not_created(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert verify_store(store) == (0, [])
    assert list_store(store) == []
    assert collect(store, dry_run=False, checkpoints=True, unfinished=True) == []
    assert not store.root.exists()


def test_any_flipped_bit_is_found(store: Store) -> None:
    rng, files = random.Random(4), content(store)
    assert len(files) == 6
    for number in range(400):
        file = files[number % len(files)]
        data = file.read_bytes()
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        _, problems = verify_store(store)
        assert problems, (file.name, at, bit)
        assert all(p.fix for p in problems)
        file.write_bytes(data)
    assert verify_store(store)[1] == []


def test_missing_longer_and_additional_files_are_found(store: Store) -> None:
    for file in content(store):
        data = file.read_bytes()
        for change in (None, data[:-1], data + b" "):
            file.unlink()
            if change is not None:
                file.write_bytes(change)
            # A missing entry only leaves a blob that nothing names: that is no damage.
            assert verify_store(store)[1] or (change is None and "index" in file.parts), file
            file.write_bytes(data)
        more = file.with_name("more.json" if "index" not in file.parts else "F16.json")
        more.write_bytes(data)
        assert verify_store(store)[1], more
        more.unlink()
    folder = next((store.root / "checkpoints").iterdir())
    (folder / "link.json").symlink_to("/etc/passwd")
    assert [p.path for p in verify_store(store)[1]] == [f"checkpoints/{folder.name}/link.json"]


def test_gc_keeps_what_is_named_or_used(store: Store) -> None:
    old = add_model(store, "n", b"model of yesterday")
    used = add_model(store, "n", b"model in use")
    add_model(store, "n", b"model of tomorrow")
    (store.root / "partial" / "n-Q8_0.gguf").write_bytes(b"of a converter that died")
    (store.root / "partial" / ".n-Q8_0.gguf.partial").write_bytes(b"the same")
    with in_use(used):
        would = collect(store, dry_run=True, checkpoints=False, unfinished=False)
        assert old.exists()
        gone = collect(store, dry_run=False, checkpoints=False, unfinished=False)
        assert gone == would
    assert {r.path for r in gone} == {
        f"blobs/{old.name}",
        "partial/n-Q8_0.gguf",
        "partial/.n-Q8_0.gguf.partial",
    }
    assert used.exists()
    assert verify_store(store)[1] == []
    gone = collect(store, dry_run=False, checkpoints=False, unfinished=False)
    assert [r.path for r in gone] == [f"blobs/{used.name}"]
    assert {r.name for r in list_store(store)} == {"m", "n", f"org/model@{COMMIT[:12]}"}


def test_checkpoints_and_unfinished_fetches_go_when_asked(store: Store) -> None:
    folder = next((store.root / "checkpoints").iterdir())
    checkpoints = Checkpoints(store.root)
    with checkpoints.fetching("half") as place_:
        place_.files.mkdir()
        (place_.files / "x.safetensors").write_bytes(b"half")
        # Somebody fetches it right now.
        assert collect(store, dry_run=False, checkpoints=False, unfinished=True) == []
        assert [r.used for r in list_store(store) if r.kind == "unfinished"] == [True]
    assert collect(store, dry_run=False, checkpoints=False, unfinished=False) == []
    # A fetch that was killed after its folder had its name.
    (store.root / "partial" / "over" / "journals").mkdir(parents=True)
    gone = collect(store, dry_run=False, checkpoints=False, unfinished=False)
    assert [r.path for r in gone] == ["partial/over"]
    gone = collect(store, dry_run=False, checkpoints=False, unfinished=True)
    assert [r.path for r in gone] == ["partial/half"]
    with in_use(folder / "model.safetensors"):
        assert collect(store, dry_run=False, checkpoints=True, unfinished=False) == []
    gone = collect(store, dry_run=False, checkpoints=True, unfinished=False)
    assert [r.path for r in gone] == [f"checkpoints/{folder.name}"]
    assert list((store.root / "checkpoints").iterdir()) == []


def test_gc_removes_nothing_while_an_entry_is_damaged(store: Store) -> None:
    old = add_model(store, "n", b"old")
    add_model(store, "n", b"new")
    (store.root / "index" / "n" / "Q4_0.json").write_text("{")
    with pytest.raises(BadDataError):
        collect(store, dry_run=False, checkpoints=False, unfinished=False)
    assert old.exists()


USER = """
import sys, time
from pathlib import Path
from edgekit.store_use import in_use
with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_use_ends_with_the_process_that_uses(store: Store) -> None:
    blob = next((store.root / "blobs").iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(blob)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_used(blob)
        assert [r.used for r in list_store(store) if r.kind == "model"] == [True]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_used(blob)
    finally:
        process.kill()
        process.communicate()


def test_a_damaged_checkpoint_is_replaced_by_a_new_fetch(store: Store) -> None:
    folder = next((store.root / "checkpoints").iterdir())
    (folder / "config.json").unlink()
    assert Checkpoints(store.root).find("org/model", COMMIT) is None
    assert add_checkpoint(store, "org/model", FILES) == folder
    assert Checkpoints(store.root).find("org/model", COMMIT) is not None
    assert verify_store(store)[1] == []


def test_a_manifest_is_read_as_it_was_written() -> None:
    whole = manifest("org/model", FILES)
    assert read_manifest(to_bytes(whole)) == whole
    assert whole.digest == manifest("org/other", FILES).digest
    assert whole.digest != manifest("org/model", {**FILES, "config.json": b"[]"}).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"model.safetensors", b"../../etc/passwd."),
        (b"config.json", b"CON.json123"[:11]),
        (b"org/model", b"../../bad"),
        (COMMIT.encode(), b"z" * 40),
        (b'"bytes": 2', b'"bytes": 3'),
        (b"edgekit.checkpoint/1", b"edgekit.checkpoint/2"),
        (b'"asked": "main"', b'"asked": 123456'),
        (b"{", b"[" * 50_000 + b"{"),
    ],
)
def test_a_manifest_that_was_meddled_with_is_refused(old: bytes, new: bytes) -> None:
    data = to_bytes(manifest("org/model", FILES))
    assert old in data
    with pytest.raises(ValueError, match=r".+"):
        read_manifest(data.replace(old, new, 1))


def test_what_is_here_is_not_stored_twice(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"content" * 1000)
    how = place(source, tmp_path / "sub" / "b")
    assert how in ("reflink", "hardlink")
    assert (tmp_path / "sub" / "b").read_bytes() == source.read_bytes()
    if how == "hardlink":
        assert (tmp_path / "sub" / "b").samefile(source)
    assert [f.name for f in (tmp_path / "sub").iterdir()] == ["b"]


def test_where_nothing_can_be_shared_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr("edgekit.placing._reflink", lambda *_: False)
    (tmp_path / "a").write_bytes(b"content")
    assert place(tmp_path / "a", tmp_path / "b") == "copy"
    assert (tmp_path / "b").read_bytes() == b"content"
    assert not (tmp_path / "b").samefile(tmp_path / "a")


def test_manifests_say_nothing_of_the_place(store: Store, tmp_path: Path) -> None:
    for file in store.root.rglob("*.json"):
        assert str(tmp_path).encode() not in file.read_bytes()
    assert (next((store.root / "checkpoints").iterdir()) / MANIFEST).is_file()
