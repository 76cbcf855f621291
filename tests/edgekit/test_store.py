"""The store: whole files or none, one writer at a time, and no hit that is not one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import (
    BadDataError,
    BusyError,
    CannotCreateError,
    MissingInputError,
    from_os,
)
from edgekit.store import (
    INSTALLED_SCHEMA,
    SCHEMA,
    Entry,
    Store,
    entry_bytes,
    fingerprint,
    plain_record,
    read_entry,
    write_durably,
)
from tests.support.cli import ROOT

ENTRY = Entry("m", "Q4_0", "ab" * 32, 5, 4, "from-here", "test")
GOOD = {"schema": SCHEMA, **plain_record(ENTRY)}
INSTALLED = {
    "schema": INSTALLED_SCHEMA,
    **plain_record(ENTRY),
    "parts": [{"sha256": "cd" * 32, "bytes": 5, "head_sha256": "ef" * 32}],
    "papers": [["LICENSE.txt", "12" * 32]],
    "medium": None,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    with store.writing("m", "Q4_0") as partial:
        partial.write_bytes(b"model")
        store.add(partial, ENTRY)
    return store


def index_of(store: Store) -> Path:
    return store.root / "index" / "m" / "Q4_0.json"


def test_an_empty_store_holds_nothing_and_is_not_created(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").find("m", "Q4_0") is None
    assert not (tmp_path / "none").exists()


def test_what_was_added_is_found(store: Store) -> None:
    assert store.find("m", "Q4_0", "from-here") == ENTRY
    assert store.find("m", "Q4_0") == ENTRY
    assert store.path(ENTRY).read_bytes() == b"model"
    assert [f.name for f in (store.root / "partial").iterdir()] == ["m-Q4_0.lock"]


@pytest.mark.parametrize(
    ("model", "filetype", "source"),
    [("m", "Q4_0", "from-elsewhere"), ("m", "Q8_0", None), ("n", "Q4_0", None)],
)
def test_another_source_type_or_model_is_no_hit(
    store: Store, model: str, filetype: str, source: str | None
) -> None:
    assert store.find(model, filetype, source) is None


@pytest.mark.parametrize("content", [b"", b"mode", b"models", None])
def test_a_blob_of_the_wrong_size_is_no_hit(store: Store, content: bytes | None) -> None:
    blob = store.path(ENTRY)
    blob.unlink() if content is None else blob.write_bytes(content)
    assert store.find("m", "Q4_0") is None


def test_an_entry_that_speaks_of_another_model_is_no_hit(store: Store) -> None:
    index_of(store).write_text(json.dumps({**GOOD, "model": "other"}))
    assert store.find("m", "Q4_0") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"schema": "edgekit.store-entry/2"}',
        json.dumps({k: v for k, v in GOOD.items() if k != "sha256"}),
        json.dumps({**GOOD, "more": 1}),
        json.dumps({**GOOD, "file_bytes": "5"}),
        json.dumps({**GOOD, "file_bytes": True}),
        json.dumps({**GOOD, "sha256": "../../../etc/passwd"}),
        json.dumps({**GOOD, "sha256": "AB" * 32}),
    ],
)
def test_a_damaged_entry_is_said_to_be_damaged(store: Store, text: str) -> None:
    index_of(store).write_text(text)
    with pytest.raises(BadDataError) as caught:
        store.find("m", "Q4_0")
    assert caught.value.code == "store_entry_damaged"
    assert str(index_of(store)) in (caught.value.hint or "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.binary()
    | JSON.map(lambda v: json.dumps(v).encode())
    | st.tuples(st.sampled_from([GOOD, INSTALLED]), st.sampled_from(sorted(INSTALLED)), JSON).map(
        lambda change: json.dumps({**change[0], change[1]: change[2]}).encode()
    )
)
def test_any_bytes_are_an_entry_or_a_value_error(data: bytes) -> None:
    try:
        entry = read_entry(data)
    except ValueError:
        return
    again = json.loads(entry_bytes(entry))
    del again["check"]
    assert json.loads(data) == again
    assert len(entry.sha256) == 64


def test_a_new_source_takes_the_place_of_the_old(store: Store) -> None:
    newer = replace(ENTRY, sha256="cd" * 32, source="changed")
    with store.writing("m", "Q4_0") as partial:
        partial.write_bytes(b"newer")
        store.add(partial, newer)
    assert store.find("m", "Q4_0", "changed") == newer
    assert store.find("m", "Q4_0", "from-here") is None
    # A server may still run from it.
    assert store.path(ENTRY).read_bytes() == b"model"


def test_a_failed_writer_leaves_nothing_and_frees_the_lock(store: Store) -> None:
    def fail() -> None:
        with store.writing("m", "Q8_0") as partial:
            partial.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.writing("m", "Q8_0") as partial:
        assert not partial.exists()
    assert store.find("m", "Q8_0") is None


HOLDER = """
import sys, time
from pathlib import Path
from edgekit.store import Store
with Store(Path(sys.argv[1])).writing("m", "Q4_0") as partial:
    partial.write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_one_writer_at_a_time_until_the_holder_is_killed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError) as caught, Store(root).writing("m", "Q4_0"):
            pass
        assert caught.value.exit_code == 75
        with Store(root).writing("m", "Q8_0"):
            pass  # another file is another lock
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with Store(root).writing("m", "Q4_0") as partial:
            partial.write_bytes(b"model")
            Store(root).add(partial, ENTRY)
        assert Store(root).find("m", "Q4_0") == ENTRY
    finally:
        holder.kill()
        holder.communicate()


def test_a_store_that_cannot_be_made_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotCreateError) as caught, Store(tmp_path / "file").writing("m", "Q4_0"):
        pass
    assert caught.value.code == "store_not_writable"
    assert "EDGEKIT_STORE" in (caught.value.hint or "")


def test_a_small_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_durably(file, b"one")
    write_durably(file, b"two")
    assert file.read_bytes() == b"two"
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotCreateError):
        write_durably(tmp_path / "folder", b"no")
    with pytest.raises(MissingInputError):
        write_durably(tmp_path / "none" / "f", b"no")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["f", "folder"]


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (errno.ENOSPC, 73),
        (errno.EDQUOT, 73),
        (errno.EROFS, 73),
        (errno.ENOENT, 66),
        (errno.EIO, 74),
    ],
)
def test_what_the_system_says_has_its_exit_code(number: int, exit_code: int) -> None:
    error = from_os(OSError(number, os.strerror(number), "/a/file"))
    assert error.exit_code == exit_code
    assert error.message.startswith("/a/file: ")
    assert error.hint


def test_a_fingerprint_changes_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").write_text("three")
    changed = fingerprint(tmp_path)
    (tmp_path / "b").touch()
    assert len({first, changed, fingerprint(tmp_path)}) == 3


def test_no_folder_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        fingerprint(tmp_path / "none")
