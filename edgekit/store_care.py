"""Look after the store: what is in it, is every bit as it was, what may go."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import filelock

from edgekit.checkpoints import MANIFEST, Checkpoint, Checkpoints, read_folder
from edgekit.errors import BadDataError, CannotCreateError, from_os
from edgekit.evaluation import read_record
from edgekit.store import Entry, Store, entry_bytes, read_entry
from edgekit.store_check import mend
from edgekit.store_previous import damaged, remembered
from edgekit.store_use import is_used

Kind = Literal["model", "checkpoint", "unfinished", "unnamed"]
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing in the store. `path` is relative to it. `used`: a living process needs it."""

    kind: Kind
    name: str
    filetype: str | None
    bytes: int
    path: str
    used: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and what mends it."""

    path: str
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that `gc` removes, or would; `why` says why nothing needs it."""

    path: str
    bytes: int
    why: str


def list_store(store: Store) -> list[Row]:
    """Return everything that takes room: models, checkpoints, unfinished fetches, the unnamed.

    Entries that cannot be read are left to `verify_store`.
    """
    rows: list[Row] = []
    named: set[str] = set()
    for _, entry in _entries(store):
        if isinstance(entry, Entry):
            named.update(entry.digests)
            blobs = store.blobs(entry)
            # Links to a medium take no room here.
            size = sum(_size(blob) for blob in blobs if not blob.is_symlink())
            used = any(is_used(blob) for blob in blobs)
            path = _name(store, store.path(entry))
            rows.append(Row("model", entry.model, entry.filetype, size, path, used))
    for checkpoint in Checkpoints(store.root).all():
        where = f"{checkpoint.manifest.repository}@{checkpoint.manifest.revision[:12]}"
        used = any(is_used(f) for f in _files(checkpoint))
        path = _name(store, checkpoint.folder)
        rows.append(Row("checkpoint", where, None, _tree_bytes(checkpoint.folder), path, used))
    for place in _unfinished(store):
        locked = _locked(place)
        rows.append(
            Row("unfinished", place.name, None, _tree_bytes(place), _name(store, place), locked)
        )
    for blob in sorted((store.root / "blobs").glob("*.gguf")):
        if blob.stem not in named:
            size = _size(blob)
            rows.append(
                Row("unnamed", blob.stem[:12], None, size, _name(store, blob), is_used(blob))
            )
    return rows


def verify_store(
    store: Store, progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[Problem]]:
    """Read every byte again; return how many there were and what is wrong.

    Blobs are named by their digest, checkpoints have a manifest, and both kinds of small file
    have one spelling with a digest of itself: no changed bit goes unnoticed.
    """
    problems: list[Problem] = []
    wanted: list[tuple[Path, str, int | None, str]] = []
    fixes: dict[Path, str] = {}
    for index, entry in _entries(store):
        if isinstance(entry, str):
            fix = "delete it; the next deploy makes it again"
            problems.append(Problem(_name(store, index), entry, fix))
        else:
            fixes |= dict.fromkeys(store.blobs(entry), mend(entry)) if entry.parts else {}
            problems += _lacking(store, index, entry)
    for note, error in damaged(store):
        problems.append(Problem(_name(store, note), error.message, "delete it"))
    for blob in sorted((store.root / "blobs").glob("*")):
        if blob.suffix == ".gguf" and _SHA256.fullmatch(blob.stem):
            fix = fixes.get(blob, "delete it; the next deploy makes it again")
            wanted.append((blob, blob.stem, None, fix))
        else:
            problems.append(Problem(_name(store, blob), "is no blob", "delete it"))
    for paper in sorted((store.root / "papers").glob("[!.]*")):
        if _SHA256.fullmatch(paper.name):
            wanted.append((paper, paper.name, None, "install the bundle that brought it again"))
        else:
            problems.append(Problem(_name(store, paper), "is no paper", "delete it"))
    for record in sorted((store.root / "evaluations").glob("*.json")):
        try:
            what = "is no record" if read_record(record.read_bytes()) is None else None
        except (OSError, ValueError) as error:
            what = f"is damaged: {error}"
        if what is not None:
            again = "delete it; the next deploy compares the file again"
            problems.append(Problem(_name(store, record), what, again))
    for folder in sorted((store.root / "checkpoints").glob("*")):
        fix = f"delete {folder}; edgekit pull fetches it again"
        try:
            manifest = read_folder(folder)
        except BadDataError as error:
            problems.append(Problem(_name(store, folder), error.message, fix))
            continue
        known = {folder / f.name for f in manifest.files} | {folder / MANIFEST}
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or (not path.is_dir() and path not in known):
                what = "is not in the manifest"
                problems.append(Problem(_name(store, path), what, "delete it"))
        wanted += [(folder / f.name, f.sha256, f.bytes, fix) for f in manifest.files]
    problems += _digests(store, wanted, progress)
    return sum(_size(path) for path, *_ in wanted), sorted(problems, key=lambda p: p.path)


def _lacking(store: Store, index: Path, entry: Entry) -> list[Problem]:
    """Say what an entry names and the store does not have, or has under a wrong name."""
    name = _name(store, index)
    again = f"edgekit deploy {entry.model}:{entry.filetype} makes it again"
    fix = mend(entry) if entry.parts else again
    blobs = store.blobs(entry)
    if not all(blob.is_file() for blob in blobs):
        where = f" from {entry.medium}" if entry.medium else ""
        return [Problem(name, f"its model file is gone{where}", fix)]
    found = [
        Problem(_name(store, link), f"does not lead to {blob.name}", fix)
        for link, blob in zip(store.names(entry), blobs, strict=False)
        if not link.is_file() or not link.samefile(blob)
    ]
    return found + [
        Problem(name, f"its {paper} is gone", fix)
        for paper, digest in entry.papers
        if not (store.root / "papers" / digest).is_file()
    ]


def collect(store: Store, *, dry_run: bool, checkpoints: bool, unfinished: bool) -> list[Removal]:
    """Remove what nothing names: old blobs, leftovers of dead converters and fetches.

    What an index entry names or a living process uses stays. Checkpoints go only when asked for,
    unfinished fetches too, since they are there to be gone on with.

    Raises BadDataError for a damaged entry, CannotCreateError or IoFailedError.
    """
    found: list[Removal] = []
    if not store.root.is_dir():
        return found
    with _alone(store, dry_run):
        entries = list(_entries(store))
        for index, entry in entries:
            if isinstance(entry, str):
                # It may name any of the blobs.
                raise BadDataError(
                    f"{index} {entry}, so it is not known which files are needed",
                    code="store_entry_damaged",
                    hint="edgekit store verify says what is wrong and how to mend it",
                )
        # What served before stays, so that there is something to go back to.
        known = [entry for _, entry in entries if isinstance(entry, Entry)] + remembered(store)
        named = {digest for entry in known for digest in (entry.sha256, *entry.digests)}
        for link in _unnamed(store, "split", {n.name for e in known for n in store.names(e)}):
            if not is_used(link):
                found.append(_remove(store, link, "no entry names it", dry_run))
        for paper in _unnamed(store, "papers", {d for e in known for _, d in e.papers}):
            found.append(_remove(store, paper, "no entry names it", dry_run))
        for blob in sorted((store.root / "blobs").glob("*")):
            if blob.stem not in named and not is_used(blob):
                found.append(_remove(store, blob, "no entry names it", dry_run))
        for record in sorted((store.root / "evaluations").glob("*.json")):
            if record.stem not in named and not is_used(
                store.root / "blobs" / f"{record.stem}.gguf"
            ):
                found.append(_remove(store, record, "its model file is gone", dry_run))
        for left in sorted((store.root / "index").rglob(".*.partial")):
            found.append(_remove(store, left, "its writer is gone", dry_run))
        for partial in sorted((store.root / "partial").glob("*")):
            if partial.suffix in (".gguf", ".partial") and not _locked(_work_of(partial)):
                found.append(_remove(store, partial, "its converter is gone", dry_run))
        for left in sorted((store.root / "checkpoints").glob(".*")):
            found.append(_remove(store, left, "left by an earlier removal", dry_run))
        for place in sorted((store.root / "partial").glob("*/")):
            begun = (place / "files").is_dir()
            if (unfinished or not begun) and not _locked(place):
                why = "an unfinished fetch" if begun else "left by a finished fetch"
                found.append(_remove(store, place, why, dry_run))
        for checkpoint in Checkpoints(store.root).all() if checkpoints else ():
            if not any(is_used(f) for f in _files(checkpoint)):
                why = "a fetched checkpoint; edgekit pull brings it again"
                found.append(_remove(store, checkpoint.folder, why, dry_run))
    return found


def _is_left(path: Path) -> bool:
    """Whether a writer that was killed left it: no name that is looked for."""
    return path.name.startswith(".") and path.suffix == ".partial"


def _unnamed(store: Store, folder: str, named: set[str]) -> list[Path]:
    return [path for path in sorted((store.root / folder).glob("*")) if path.name not in named]


def _work_of(partial: Path) -> Path:
    """Return what a converter's files in `partial/` have in common: the lock's name."""
    name = partial.name.removesuffix(".partial").removesuffix(".gguf")
    return partial.with_name(name.removeprefix("."))


def as_records(items: list[Row] | list[Problem] | list[Removal]) -> list[dict[str, object]]:
    """Return the JSON form."""
    return [asdict(item) for item in items]


@contextmanager
def _alone(store: Store, dry_run: bool) -> Iterator[None]:
    """Hold the lock that a finished file takes between its blob and its entry."""
    if dry_run:
        yield
        return
    try:
        with store.publishing():
            yield
    except OSError as error:
        raise from_os(error) from error


def _entries(store: Store) -> Iterator[tuple[Path, Entry | str]]:
    """Give each index entry, or what is wrong with it."""
    for index in sorted((store.root / "index").rglob("*")):
        if index.is_dir() or _is_left(index):
            continue
        try:
            data = index.read_bytes()
            entry = read_entry(data)
        except (OSError, ValueError) as error:
            yield index, f"is damaged: {error}"
            continue
        if (entry.model, f"{entry.filetype}.json") != (index.parent.name, index.name):
            yield index, f"speaks of {entry.model} {entry.filetype}"
        elif b'"check"' in data and entry_bytes(entry) != data:
            yield index, "does not agree with its own digest"
        else:
            yield index, entry


def _digests(
    store: Store,
    wanted: list[tuple[Path, str, int | None, str]],
    progress: Callable[[int, int], None],
) -> list[Problem]:
    total, done = sum(_size(path) for path, *_ in wanted), 0

    def check(item: tuple[Path, str, int | None, str]) -> Problem | None:
        nonlocal done
        path, digest, size, fix = item
        try:
            here = path.stat().st_size
            if size is not None and here != size:
                return Problem(_name(store, path), f"has {here:,} bytes instead of {size:,}", fix)
            sha = hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                buffer = memoryview(bytearray(4 << 20))
                while count := file.readinto(buffer):
                    sha.update(buffer[:count])
                    done += count
                    progress(done, total)
        except OSError as error:
            return Problem(_name(store, path), f"cannot be read: {error.strerror}", fix)
        if sha.hexdigest() != digest:
            return Problem(_name(store, path), "has changed: its sha256 differs", fix)
        return None

    with ThreadPoolExecutor(max_workers=4) as pool:
        return [problem for problem in pool.map(check, wanted) if problem is not None]


def _unfinished(store: Store) -> list[Path]:
    places = sorted((store.root / "partial").glob("*/"))
    return [place for place in places if (place / "files").is_dir()]


def _locked(place: Path) -> bool:
    """Say whether a living process holds `<place>.lock`."""
    lock = place.with_name(f"{place.name}.lock")
    if not lock.exists():
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return True  # not ours to judge


def _remove(store: Store, path: Path, why: str, dry_run: bool) -> Removal:
    size = _tree_bytes(path)
    if not dry_run:
        try:
            if path.is_dir():
                # Under its own name it would be half a checkpoint for a while.
                gone = path.with_name(f".{path.name.removeprefix('.')}")
                path.rename(gone)
                shutil.rmtree(gone)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            failed = from_os(error)
            raise CannotCreateError(
                f"cannot remove {path}: {failed.message}", code="not_removable", hint=failed.hint
            ) from error
    return Removal(_name(store, path), size, why)


def _files(checkpoint: Checkpoint) -> list[Path]:
    return [checkpoint.folder / f.name for f in checkpoint.manifest.files]


def _tree_bytes(path: Path) -> int:
    """Return the blocks that a file or folder takes; files with a second name elsewhere count."""
    if not path.is_dir():
        return _taken(path)
    return sum(_taken(p) for p in path.rglob("*") if p.is_file())


def _taken(path: Path) -> int:
    with contextlib.suppress(OSError):
        stat = path.lstat()  # a link to a medium is not what it leads to
        # A file on its way has its full length from the start, but not its blocks.
        blocks = getattr(stat, "st_blocks", None)
        return stat.st_size if blocks is None else min(stat.st_size, blocks * 512)
    return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _name(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()
