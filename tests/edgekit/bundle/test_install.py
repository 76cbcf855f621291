"""From a bundle into a store: shared, copied once or served where it lies, and always proven."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest

from edgekit.bundle import bring as bringing
from edgekit.bundle import install as installing
from edgekit.bundle import keys
from edgekit.bundle.bring import Wanted, bring
from edgekit.bundle.create import Item, create
from edgekit.bundle.install import install
from edgekit.catalogue import find_model
from edgekit.errors import EdgekitError
from edgekit.store import Entry, Store, content_of, entry_bytes, read_entry
from edgekit.store_care import collect, list_store, verify_store
from edgekit.store_check import quick_check
from edgekit.store_use import in_use, is_used
from edgekit_quantize import convert
from tests.support.cli import POCKET

SPLIT = 2_500_000
CHUNK = 1 << 16


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    path = tmp_path_factory.mktemp("made") / "pocket.gguf"
    made = convert(POCKET, path, "Q8_0")
    entry = Entry(
        "pocket", "Q8_0", made.sha256, made.file_bytes, made.tensor_bytes, "theirs", "test"
    )
    return Item(find_model("pocket"), entry, path, {"LICENSE.txt": b"terms\n"})


@pytest.fixture(scope="module")
def made(item: Item, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whole` and `split`, both signed with the key in it."""
    home = tmp_path_factory.mktemp("bundles")
    keys.generate(home / "k.pem", home / "k.pub")
    private = keys.read_private(home / "k.pem")
    create(home / "whole", [item], private)
    create(home / "split", [item], private, split_bytes=SPLIT)
    return home


@pytest.fixture
def trust(made: Path, tmp_path: Path) -> keys.Trust:
    return keys.load_trust(tmp_path, (made / "k.pub",))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def no_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store lies on another file system than the bundle."""
    monkeypatch.setattr(bringing, "share", lambda *_: None)
    monkeypatch.setattr(installing, "share", lambda *_: None)


def found(store: Store) -> Entry:
    entry = store.find("pocket", "Q8_0")
    assert entry is not None
    return entry


def problem_of(work: Callable[[], object]) -> EdgekitError | None:
    try:
        work()
    except EdgekitError as error:
        return error
    return None


def test_one_file_is_shared_and_is_what_was_made(
    item: Item, made: Path, trust: keys.Trust, store: Store
) -> None:
    done = install(made / "whole", store, trust)
    (model,) = done.models
    assert model.how[0] in ("hardlink", "reflink")
    assert (done.signer, done.copied_bytes) == ("k", 0)
    entry = found(store)
    assert store.path(entry) == store.root / "blobs" / f"{item.entry.sha256}.gguf"
    assert store.path(entry).read_bytes() == item.gguf.read_bytes()
    paper = store.paper(entry, "LICENSE.txt")
    assert paper is not None
    assert paper.read_bytes() == b"terms\n"
    assert verify_store(store)[1] == []
    assert not list((store.root / "partial").glob("*/"))
    again = install(made / "whole", store, trust)
    assert again.models[0].how == ("kept",)
    assert found(store) == entry


def test_several_files_lie_under_their_digests_and_have_names_for_the_engine(
    item: Item, made: Path, trust: keys.Trust, store: Store, no_sharing: None
) -> None:
    done = install(made / "split", store, trust)
    entry = found(store)
    assert done.copied_bytes == entry.file_bytes == sum(part.bytes for part in entry.parts)
    assert len(entry.parts) > 2
    assert entry.sha256 == item.entry.sha256
    first = store.path(entry)
    assert first.name == f"{entry.sha256}-00001-of-{len(entry.parts):05d}.gguf"
    assert content_of(first) == entry.sha256
    for name, blob in zip(store.names(entry), store.blobs(entry), strict=True):
        assert name.samefile(blob)
    # The whole store can be moved.
    moved = Store(store.root.rename(store.root.with_name("moved")))
    assert moved.path(found(moved)).is_file()
    assert verify_store(moved)[1] == []
    assert read_entry(entry_bytes(entry)) == entry


def test_a_medium_serves_without_a_byte_of_the_store(
    made: Path, trust: keys.Trust, store: Store, tmp_path: Path
) -> None:
    medium = tmp_path / "stick"

    shutil.copytree(made / "split", medium)
    for path in [medium, *medium.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = install(medium, store, trust, in_place=True)
    assert set(done.models[0].how) == {"in place"}
    assert done.copied_bytes == 0
    entry = found(store)
    assert entry.medium == str(medium)
    assert sum(p.lstat().st_size for p in store.root.rglob("*") if not p.is_symlink()) < 100_000
    quick_check(store, entry)
    assert verify_store(store)[1] == []
    assert next(r.bytes for r in list_store(store) if r.kind == "model") == 0
    collect(store, dry_run=False, checkpoints=True, unfinished=True)
    assert found(store) == entry

    medium.chmod(0o755)
    moved = medium.rename(tmp_path / "elsewhere")
    with pytest.raises(EdgekitError) as error:
        store.find("pocket", "Q8_0")
    assert (error.value.code, error.value.exit_code) == ("medium_missing", 66)
    assert str(medium) in error.value.message
    assert {p.path for p in verify_store(store)[1]} >= {"index/pocket/Q8_0.json"}
    install(moved, store, trust, in_place=True)
    assert found(store).medium == str(moved)
    # From the medium into the store, for good.
    install(moved, store, trust)
    assert found(store).medium is None
    assert not any(blob.is_symlink() for blob in store.blobs(found(store)))


@pytest.mark.parametrize("in_place", [False, True])
def test_nothing_unproven_gets_a_name(
    made: Path, trust: keys.Trust, store: Store, tmp_path: Path, in_place: bool
) -> None:

    for where in ("blob", "index.json", "oci-layout", "record"):
        root = tmp_path / where
        shutil.copytree(made / "split", root)
        sizes = sorted((root / "blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
        victim = {"blob": sizes[-1], "record": sizes[1]}.get(where, root / where)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 4
        victim.write_bytes(data)
        with pytest.raises(EdgekitError) as error:
            install(root, store, trust, in_place=in_place)
        assert error.value.exit_code == 65
        assert store.find("pocket", "Q8_0") is None
        assert not list((store.root / "blobs").glob("*"))


def test_who_is_not_trusted_is_not_read(made: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError) as error:
        install(made / "whole", store, keys.load_trust(tmp_path))
    assert error.value.code == "key_not_trusted"
    assert not store.root.exists()


def test_a_full_disk_is_said_before_anything_is_written(
    item: Item,
    made: Path,
    trust: keys.Trust,
    store: Store,
    no_sharing: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = item.entry.file_bytes
    needed = int(size * 1.02) + (512 << 20)
    monkeypatch.setattr(installing, "free_bytes", lambda _: needed - 1)
    with pytest.raises(EdgekitError) as error:
        install(made / "whole", store, trust)
    assert (error.value.code, error.value.exit_code) == ("disk_full", 73)
    assert f"{needed - 1:,} bytes free" in error.value.message
    assert f"{needed:,} are needed: {size:,}" in error.value.message
    assert not store.root.exists()
    assert install(made / "whole", store, trust, in_place=True).copied_bytes == 0
    monkeypatch.setattr(installing, "free_bytes", lambda _: needed)
    assert install(made / "whole", store, trust).copied_bytes == size


def used(root: Path) -> int:
    """The blocks of a folder, each file once."""
    seen = {(s.st_dev, s.st_ino): s.st_blocks * 512 for p in root.rglob("*") if (s := p.lstat())}
    return sum(seen.values())


def test_the_disk_never_holds_more_than_1_02_of_the_bundle(
    made: Path,
    trust: keys.Trust,
    store: Store,
    no_sharing: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peak, real = 0, os.replace

    def watched(source: Path, target: Path) -> None:
        nonlocal peak
        peak = max(peak, used(store.root))
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    install(made / "split", store, trust, chunk_bytes=CHUNK)
    peak = max(peak, used(store.root))
    assert peak <= 1.02 * used(made / "split")


@pytest.fixture
def yanked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Let reads from the medium fail once so many bytes were read; count them."""
    real = bringing.read_into

    def arm(after: int, reason: int) -> list[int]:
        read = [0]

        def reading(file: FileIO, view: memoryview) -> int:
            if read[0] >= after:
                raise OSError(reason, os.strerror(reason))
            read[0] += (count := real(file, view))
            return count

        monkeypatch.setattr(bringing, "read_into", reading)
        monkeypatch.setattr(bringing, "READ_BYTES", CHUNK // 4)
        return read

    return arm


def test_a_medium_that_is_pulled_out_costs_one_chunk(
    made: Path,
    trust: keys.Trust,
    store: Store,
    no_sharing: None,
    yanked: Callable[[int, int], list[int]],
) -> None:
    rng, read, pulls = random.Random(5), 0, 0
    total = sum(f.stat().st_size for f in (made / "split/blobs/sha256").iterdir())
    for _ in range(300):
        count = yanked(rng.randrange(1, 20 * CHUNK), rng.choice((errno.EIO, errno.ENODEV)))
        error = problem_of(lambda: install(made / "split", store, trust, chunk_bytes=CHUNK))
        read += count[0]
        if error is None:
            break
        assert (error.code, error.exit_code) == ("medium_gone", 74)
        assert "goes on from there" in str(error.hint)
        assert store.find("pocket", "Q8_0") is None
        pulls += 1
    else:
        pytest.fail("it never came to an end")
    assert pulls > 10
    assert read <= total + pulls * CHUNK
    assert verify_store(store)[1] == []
    for blob in store.blobs(found(store)):
        assert blob.read_bytes() == (made / "split/blobs/sha256" / blob.stem).read_bytes()


def test_what_a_killed_copy_left_is_believed_as_far_as_it_is_proven(
    tmp_path: Path, yanked: Callable[[int, int], list[int]]
) -> None:
    import hashlib

    data = random.Random(1).randbytes(10 * CHUNK + 77)
    source, target, journal = (tmp_path / n for n in ("source", "target", "journal"))
    source.write_bytes(data)
    wanted = Wanted(source, hashlib.sha256(data).hexdigest(), len(data))

    def run(after: int = len(data) + 1) -> int:
        read = yanked(after, errno.EIO)
        error = problem_of(lambda: bring(wanted, target, journal, sharing=False, chunk_bytes=CHUNK))
        assert error is None or error.code == "medium_gone"
        return read[0]

    run(5 * CHUNK)
    half = (target.read_bytes(), journal.read_bytes())
    damages: list[tuple[bytes, bytes, int]] = [
        (half[0], half[1], 5),  # as it was left
        (half[0], half[1][:-9], 6),  # a torn line
        (half[0][: 3 * CHUNK], half[1], 7),  # a file cut short by a lost write
        (half[0][: 2 * CHUNK] + bytes(8 * CHUNK), half[1], 8),
        (b"", half[1], 10),
        (half[0], b"", 10),
        (half[0], b"noise\n", 10),
        (half[0] + bytes(20 * CHUNK), half[1], 5),
    ]
    for left, notes, chunks in damages:
        target.write_bytes(left)
        journal.write_bytes(notes)
        assert -(-run() // CHUNK) == chunks + 1
        assert target.read_bytes() == data


def test_a_quick_check_names_the_file(made: Path, trust: keys.Trust, store: Store) -> None:
    install(made / "split", store, trust)
    entry = found(store)
    quick_check(store, entry)
    blob = store.blobs(entry)[1]
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.unlink()  # it may be a name of the bundle's own file
    blob.write_bytes(data)
    with pytest.raises(EdgekitError) as error:
        quick_check(store, entry)
    assert error.value.code == "store_damaged"
    assert blob.name in error.value.message
    install(made / "split", store, trust)
    quick_check(store, entry)
    assert verify_store(store)[1] == []


def test_gc_leaves_every_part_and_takes_what_no_entry_names(
    made: Path, trust: keys.Trust, store: Store
) -> None:
    install(made / "split", store, trust)
    before = {p.name for p in store.root.rglob("*")}
    assert collect(store, dry_run=False, checkpoints=True, unfinished=True) == []
    assert {p.name for p in store.root.rglob("*")} - {"store.lock"} >= before - {"store.lock"}
    entry = found(store)
    with in_use(store.path(entry)):
        assert all(is_used(blob) for blob in store.blobs(entry))
        (store.root / "index/pocket/Q8_0.json").unlink()
        collect(store, dry_run=False, checkpoints=False, unfinished=False)
        assert all(blob.exists() for blob in store.blobs(entry))
        assert all(name.exists() for name in store.names(entry))
    collect(store, dry_run=False, checkpoints=False, unfinished=False)
    assert not list(store.root.rglob("*.gguf"))
    assert not list((store.root / "papers").iterdir())


def test_a_link_that_leads_elsewhere_is_found(made: Path, trust: keys.Trust, store: Store) -> None:
    install(made / "split", store, trust)
    name = store.names(found(store))[1]
    name.unlink()
    name.symlink_to(f"../blobs/{found(store).digests[0]}.gguf")
    (problem,) = verify_store(store)[1]
    assert problem.path.startswith("split/")
    assert "edgekit bundle install" in problem.fix


def test_a_name_that_is_a_path_is_refused(
    item: Item, made: Path, trust: keys.Trust, store: Store, tmp_path: Path
) -> None:
    from dataclasses import replace

    bad = replace(item, entry=replace(item.entry, filetype="../../escape"))
    create(tmp_path / "b", [bad], keys.read_private(made / "k.pem"))
    with pytest.raises(EdgekitError) as error:
        install(tmp_path / "b", store, trust)
    assert error.value.code == "bad_layout"
    assert not store.root.exists()
    assert not list(tmp_path.rglob("*escape*.json"))
