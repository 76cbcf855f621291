"""Kills, media that are pulled out and flipped bits, at random points: nothing gets by unseen."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from edgekit.bundle import keys, seal
from edgekit.bundle.create import JOURNAL, Item, create
from edgekit.bundle.install import install
from edgekit.catalogue import find_model
from edgekit.errors import EdgekitError, IoFailedError
from edgekit.evaluation import keep
from edgekit.fetch_journal import read_journal
from edgekit.quality import Quality
from edgekit.store import Entry, Store
from edgekit.store_care import verify_store
from edgekit_quantize import convert
from edgekit_quantize.resplit import Piece
from tests.support.cli import POCKET, SOURCES
from tests.support.gguf_models import write_model

SPLIT = 2_500_000
CHUNK = 1 << 18
MANY = pytest.mark.slow

CREATE = f"""
import json, sys
from pathlib import Path
from edgekit.bundle import keys
from edgekit.bundle.create import Item, create
from edgekit.catalogue import find_model
from edgekit.store import Entry
from edgekit_quantize import resplit
resplit._COPY_BYTES = 1 << 16
target, gguf, key, entry = sys.argv[1:]
entry = Entry(**json.loads(entry))
item = Item(find_model("pocket"), entry, Path(gguf), {{"LICENSE": b"terms\\n"}})
private = keys.read_private(Path(key))
print("ready", flush=True)
create(Path(target), [item], private, split_bytes={SPLIT})
print("done", flush=True)
"""

INSTALL = f"""
import mmap, struct, sys
from pathlib import Path
from edgekit.bundle import bring, install, keys
from edgekit.store import Store
target, root, key, counter = sys.argv[1:]
trust = keys.load_trust(Path("/nowhere"), (Path(key),))
bring.share = install.share = lambda *_: None
bring.READ_BYTES = {CHUNK // 4}
file = open(counter, "r+b")
count = mmap.mmap(file.fileno(), 8)
real = bring.read_into
def read_into(file, view):
    n = real(file, view)
    count[:] = struct.pack("<q", struct.unpack("<q", count[:])[0] + n)
    return n
bring.read_into = read_into
print("ready", flush=True)
install.install(Path(root), Store(Path(target)), trust, chunk_bytes={CHUNK})
print("done", flush=True)
"""


@dataclass(frozen=True)
class Made:
    """A signed bundle in several files, what it was made of, and its key."""

    home: Path
    item: Item

    @property
    def root(self) -> Path:
        return self.home / "good"

    @property
    def key(self) -> Path:
        return self.home / "k.pem"

    @property
    def trust(self) -> keys.Trust:
        return keys.load_trust(self.home / "none", (self.home / "k.pub",))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("made")
    file = convert(POCKET, home / "pocket.gguf", "Q8_0")
    entry = Entry("pocket", "Q8_0", file.sha256, file.file_bytes, file.tensor_bytes, "x", "test")
    keys.generate(home / "k.pem", home / "k.pub")
    item = Item(find_model("pocket"), entry, home / "pocket.gguf", {"LICENSE": b"terms\n"})
    create(home / "good", [item], keys.read_private(home / "k.pem"), split_bytes=SPLIT)
    return Made(home, item)


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def started(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finished(child: subprocess.Popen[str]) -> float:
    """Wait for the end; return the seconds since it was ready."""
    began = time.monotonic()
    out, _ = child.communicate(timeout=120)
    assert (child.returncode, out) == (0, "done\n")
    return time.monotonic() - began


def killed(child: subprocess.Popen[str], after_s: float) -> tuple[bool, int]:
    """Kill it at a moment; return whether it was done, and how many bytes it had written."""
    time.sleep(after_s)
    child.send_signal(signal.SIGSTOP)
    written = 0
    with contextlib.suppress(OSError, IndexError):  # it has ended
        written = int(Path(f"/proc/{child.pid}/io").read_text().split("wchar: ")[1].split()[0])
    child.send_signal(signal.SIGKILL)
    out, _ = child.communicate(timeout=60)
    return out == "done\n", written


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=MANY)])
def test_a_killed_create_goes_on_and_ends_with_the_same_bytes(
    made: Made, tmp_path: Path, kills: int
) -> None:
    rng, good = random.Random(kills), content(made.root)
    total = sum(map(len, good.values()))
    told = (made.item.gguf, made.key, json.dumps(asdict(made.item.entry)))
    whole_s = finished(started(CREATE, tmp_path / "first", *told))
    written, since, ends = 0, 0, 0
    for number in range(kills):
        root = tmp_path / f"b{ends}"
        done, bytes_ = killed(started(CREATE, root, *told), rng.random() * whole_s)
        written, since = written + bytes_, since + 1
        if done or ((root / seal.SUMS).exists() and not (root / JOURNAL).exists()):
            assert content(root) == good
            ends, written, since = ends + 1, 0, 0
        elif root.exists():
            with pytest.raises(EdgekitError):
                seal.read_seal(root, made.trust)  # half a bundle is none
            # Small files are written anew by each run, weights only once.
            assert written <= total + since * (1 << 19), number
    root = tmp_path / f"b{ends}"
    if not (root.exists() and (root / seal.SUMS).exists() and not (root / JOURNAL).exists()):
        finished(started(CREATE, root, *told))
    assert content(root) == good


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=MANY)])
def test_a_killed_install_goes_on_and_reads_little_again(
    made: Made, tmp_path: Path, kills: int
) -> None:
    rng = random.Random(kills)
    counter = tmp_path / "counter"
    sizes = {f.name: f.stat().st_size for f in (made.root / "blobs/sha256").iterdir()}

    def run(store: Store) -> subprocess.Popen[str]:
        return started(INSTALL, store.root, made.root, made.home / "k.pub", counter)

    counter.write_bytes(bytes(8))
    first = Store(tmp_path / "first")
    whole_s = finished(run(first))
    good, entry = content(first.root), first.find("pocket", "Q8_0")
    assert entry is not None
    counter.write_bytes(bytes(8))
    ends = since = 0
    for _ in range(kills):
        store = Store(tmp_path / f"s{ends}")
        killed(run(store), rng.random() * whole_s)
        since += 1
        assert_sound(store)
        for target in (store.root / "partial").rglob("files/*.gguf"):
            journal = read_journal((target.parent.parent / "journals" / target.stem).read_bytes())
            noted = max((m.end for m in journal.marks.values()), default=0) if journal else 0
            assert target.stat().st_size - noted <= CHUNK
        found = store.find("pocket", "Q8_0")
        if found is None:
            continue
        assert found == entry
        assert read_bytes(counter) <= entry.file_bytes + since * CHUNK
        finished(run(store))  # a kill after the end leaves nothing that a second run minds
        assert content(store.root).keys() >= good.keys()
        counter.write_bytes(bytes(8))
        ends, since = ends + 1, 0
    store = Store(tmp_path / f"s{ends}")
    finished(run(store))
    assert read_bytes(counter) <= entry.file_bytes + since * CHUNK
    assert store.find("pocket", "Q8_0") == entry
    assert verify_store(store)[1] == []
    for digest in entry.digests:
        assert (store.root / "blobs" / f"{digest}.gguf").stat().st_size == sizes[digest]


def read_bytes(counter: Path) -> int:
    return int(struct.unpack("<q", counter.read_bytes())[0])


def assert_sound(store: Store) -> None:
    """Whatever has a name in the store holds what the name says."""
    for blob in (store.root / "blobs").glob("*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.stem
    if store.find("pocket", "Q8_0") is not None:
        assert verify_store(store)[1] == []


@pytest.mark.parametrize("cuts", [10, pytest.param(100, marks=MANY)])
def test_a_create_whose_disk_fails_goes_on(
    made: Made, tmp_path: Path, cuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, real, left = random.Random(cuts), Piece.chunks, [0]

    def chunks(self: Piece) -> Iterator[bytes]:
        for data in real(self):
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            yield data

    monkeypatch.setattr(Piece, "chunks", chunks)
    monkeypatch.setattr("edgekit_quantize.resplit._COPY_BYTES", 1 << 16)
    key, root = keys.read_private(made.key), tmp_path / "b"
    failed = 0
    while failed < cuts:
        left[0] = rng.randrange(made.item.entry.file_bytes)
        try:
            create(root, [made.item], key, split_bytes=SPLIT)
        except IoFailedError:
            failed += 1
        else:  # the blobs of earlier runs were not read again
            assert content(root) == content(made.root)
            shutil.rmtree(root)
    if root.exists() and not (root / JOURNAL).exists():
        shutil.rmtree(root)
    left[0] = 1 << 40
    create(root, [made.item], key, split_bytes=SPLIT)
    assert content(root) == content(made.root)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of some hundred kilobytes: what is damaged is read again a thousand times."""
    home = tmp_path_factory.mktemp("small")
    file = write_model(home / "tiny.gguf", quantized=True)
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    entry = Entry("pocket", "F32", digest, size, size, "x", "test")
    keys.generate(home / "k.pem", home / "k.pub")
    item = Item(find_model("pocket"), entry, file, {"LICENSE": b"terms\n"})
    private = keys.read_private(home / "k.pem")
    create(home / "good", [item], private, split_bytes=size * 2 // 3)
    return Made(home, item)


def flips(root: Path, rng: random.Random, count: int) -> Iterator[Path]:
    """Flip one bit somewhere under `root`, give the file, and flip it back; files in turn."""
    files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size]
    large = max(files, key=lambda p: p.stat().st_size)
    for number in range(count):
        path = rng.choice(files) if number % 2 else large
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
            at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
            data[at] ^= bit
            data.flush()
            yield path
            data[at] ^= bit


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=MANY)])
def test_every_flipped_bit_of_a_bundle_is_found(small: Made, count: int) -> None:
    trust, rng = small.trust, random.Random(count)
    missed = [path for path in flips(small.root, rng, count) if is_whole(small.root, trust)]
    assert not missed
    assert is_whole(small.root, trust)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=MANY)])
def test_every_flipped_bit_of_an_installed_store_is_found(
    small: Made, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.bundle.bring.share", lambda *_: None)
    store = Store(tmp_path / "store")
    (model,) = install(small.root, store, small.trust).models
    assert set(model.how) == {"copy"}
    assert len(model.entry.parts) > 1
    keep(store.root, Quality(model.entry.sha256, "m", None, 0, (), 0, (), "e", "a note"))
    (store.root / "store.lock").unlink()
    missed = [p for p in flips(store.root, random.Random(count), count) if not problems(store)]
    assert not missed
    assert not problems(store)


def is_whole(root: Path, trust: keys.Trust) -> bool:
    try:
        seal.check_bytes(root, seal.read_seal(root, trust).digests)
    except EdgekitError as error:
        return error.exit_code not in (65, 66)
    return True


def problems(store: Store) -> list[str]:
    return [problem.path for problem in verify_store(store)[1]]


def test_a_create_that_was_killed_before_its_journal_goes_on(made: Made, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    create(tmp_path / "b", [made.item], keys.read_private(made.key), split_bytes=SPLIT)
    assert content(tmp_path / "b") == content(made.root)
