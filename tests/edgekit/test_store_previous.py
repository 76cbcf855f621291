"""Going back to what served before: after installs, kills, clean-ups and damage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.store import Entry, Part, Store, entry_bytes, write_durably
from edgekit.store_care import collect
from edgekit.store_previous import previous, remember, roll_back
from tests.support.cli import Cli


def install(store: Store, content: bytes, *, killed: bool = False) -> Entry:
    """What an installation does to the store, with a file that is no model."""
    digest = hashlib.sha256(content).hexdigest()
    (store.root / "index" / "m").mkdir(parents=True, exist_ok=True)
    (store.root / "blobs").mkdir(exist_ok=True)
    (store.root / "blobs" / f"{digest}.gguf").write_bytes(content)
    part = Part(digest, len(content), digest)
    entry = Entry("m", "Q8_0", digest, len(content), 1, "s", "t", (part,))
    with store.publishing():
        remember(store, entry)
        if not killed:
            write_durably(store.root / "index" / "m" / "Q8_0.json", entry_bytes(entry))
    return entry


def serving(store: Store) -> str:
    found = store.find("m", "Q8_0")
    assert found is not None
    return found.sha256


def test_back_and_forth(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = install(store, b"one")
    with pytest.raises(EdgekitError) as nothing:
        roll_back(store, "m", "Q8_0")
    assert nothing.value.code == "no_previous"
    two = install(store, b"two")
    assert serving(store) == two.sha256
    assert previous(store, "m", "Q8_0") == one
    assert roll_back(store, "m", "Q8_0") == one
    assert serving(store) == one.sha256
    assert roll_back(store, "m", "Q8_0") == two
    assert serving(store) == two.sha256
    # Installing what is there changes nothing.
    install(store, b"two")
    assert previous(store, "m", "Q8_0") == one
    three = install(store, b"three")
    assert previous(store, "m", "Q8_0") == two
    assert serving(store) == three.sha256


def test_an_installation_that_was_killed_leaves_the_old_one_serving(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = install(store, b"one")
    install(store, b"two", killed=True)
    assert serving(store) == one.sha256
    two = install(store, b"two")
    assert serving(store) == two.sha256
    assert roll_back(store, "m", "Q8_0") == one


def test_clearing_up_leaves_the_way_back_but_not_older_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for content in (b"one", b"two", b"three"):
        install(store, content)
    gone = collect(store, dry_run=False, checkpoints=False, unfinished=False)
    assert [Path(item.path).stem for item in gone] == [hashlib.sha256(b"one").hexdigest()]
    roll_back(store, "m", "Q8_0")
    assert serving(store) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_is_gone_is_not_gone_back_to(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = install(store, b"one"), install(store, b"two")
    (tmp_path / "blobs" / f"{one.sha256}.gguf").unlink()
    with pytest.raises(EdgekitError) as error:
        roll_back(store, "m", "Q8_0")
    assert error.value.code == "previous_gone"
    assert serving(store) == two.sha256


@pytest.mark.parametrize("position", range(0, 1200, 37))
def test_a_changed_bit_in_the_note_is_found(tmp_path: Path, position: int) -> None:
    store = Store(tmp_path)
    install(store, b"one")
    install(store, b"two")
    note = tmp_path / "previous" / "m" / "Q8_0.json"
    data = bytearray(note.read_bytes())
    data[position % len(data)] ^= 1
    note.write_bytes(data)
    with pytest.raises(EdgekitError) as error:
        roll_back(store, "m", "Q8_0")
    assert error.value.code == "store_entry_damaged"
    with pytest.raises(EdgekitError):
        collect(store, dry_run=True, checkpoints=False, unfinished=False)
    assert serving(store) == hashlib.sha256(b"two").hexdigest()


def test_the_command(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    store = Store(cli.store)
    one = install(store, b"one")
    install(store, b"two")
    assert cli.json("store", "rollback", "m")["sha256"] == one.sha256
    assert serving(store) == one.sha256
    assert cli.run("store", "rollback").returncode == 2
    assert cli.run("store", "rollback", "other").returncode == 66
