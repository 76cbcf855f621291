"""The content-addressed store of model files.

    store/blobs/<sha256>.gguf          a finished file, named by its content
    store/index/<model>/<filetype>.json   which blob serves a model at a file type, and from what
    store/partial/                     work in progress; safe to delete when nothing runs

A writer holds the lock of its (model, file type) while it works; the lock is the kernel's, so it
ends with the process that holds it, however that process ends. Readers need no lock: a blob or an
index entry appears under its name whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import filelock

from edgekit.errors import (
    BadDataError,
    BusyError,
    CannotCreateError,
    MissingInputError,
    from_os,
)

SCHEMA = "edgekit.store-entry/1"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model file in the store. `source` tells a changed checkpoint from the one converted."""

    model: str
    filetype: str
    sha256: str
    file_bytes: int
    tensor_bytes: int
    source: str
    made_by: str


class Store:
    """A folder of model files. Created on first write, readable by anyone who can read it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, entry: Entry) -> Path:
        """Return where the entry's file lies."""
        return self.root / "blobs" / f"{entry.sha256}.gguf"

    def find(self, model: str, filetype: str, source: str | None = None) -> Entry | None:
        """Return the entry whose file is there with the right size, made from `source` if given.

        The content is not read again: its digest was taken while it was written.

        Raises BadDataError when the index entry cannot be read or is not ours.
        """
        index = self._index(model, filetype)
        try:
            entry = read_entry(index.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BadDataError(
                f"the store's entry {index} is damaged: {error}",
                code="store_entry_damaged",
                hint=f"delete {index}; the next deploy makes it again",
            ) from error
        if (entry.model, entry.filetype) != (model, filetype) or source not in (None, entry.source):
            return None
        try:
            size = self.path(entry).stat().st_size
        except OSError:
            return None
        return entry if size == entry.file_bytes else None

    @contextmanager
    def writing(self, model: str, filetype: str) -> Iterator[Path]:
        """Hold the lock of (model, filetype) and give a path in `partial/` to write to.

        What is at that path when the block ends, however it ends, is removed: `add` moves it away.

        Raises:
            BusyError: another process is making the same file.
            CannotCreateError: the store's folder cannot be made or written.
        """
        name = f"{model}-{filetype}"
        try:
            for folder in ("blobs", "index", "partial"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.root / "partial" / f"{name}.lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise BusyError(
                f"another process is making {model} {filetype} in {self.root}",
                code="store_locked",
                hint="wait for it to finish and run the same command again",
            ) from None
        except OSError as error:
            raise CannotCreateError(
                f"cannot write to the store {self.root}: {error.strerror}",
                code="store_not_writable",
                hint="set EDGEKIT_STORE to a folder that you can write to",
            ) from error
        partial = self.root / "partial" / f"{name}.gguf"
        try:
            yield partial
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            lock.release()

    def add(self, partial: Path, entry: Entry) -> Path:
        """Move a finished file under its digest, then point the index at it; return its path.

        A blob that no entry names any more stays: a running server may need it again.

        Raises CannotCreateError or IoFailedError when the disk will not have it.
        """
        blob, index = self.path(entry), self._index(entry.model, entry.filetype)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.publishing())
                os.replace(partial, blob)
                sync_folder(blob.parent)
                index.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise from_os(error) from error
            write_durably(index, entry_bytes(entry))
        return blob

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Hold the lock under which a blob gets its entry, and under which unnamed blobs go.

        Held for moments, or for one `store gc`; waits for it. Raises OSError.
        """
        with filelock.FileLock(self.root / "store.lock"):
            yield

    def _index(self, model: str, filetype: str) -> Path:
        return self.root / "index" / model / f"{filetype}.json"


def entry_bytes(entry: Entry) -> bytes:
    """Return the one spelling of an index entry, with a digest of itself."""
    record = {"schema": SCHEMA, **asdict(entry)}
    check = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**record, "check": check}, indent=2) + "\n").encode()


def read_entry(data: bytes) -> Entry:
    """Parse an index entry. Raises ValueError for anything but a whole entry of this schema.

    The digest that later versions write is not asked for; `store verify` holds entries to it.
    """
    try:
        record = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict) or record.pop("schema", None) != SCHEMA:
        raise ValueError(f"not an {SCHEMA} record")
    record.pop("check", None)
    kinds = {f.name: int if f.name.endswith("_bytes") else str for f in fields(Entry)}
    if record.keys() != kinds.keys() or any(type(record[n]) is not k for n, k in kinds.items()):
        raise ValueError("fields are missing, unknown or of the wrong type")
    # The digest becomes a file name: nothing else may stand there.
    if not _SHA256.fullmatch(record["sha256"]):
        raise ValueError("sha256 is not a digest")
    return Entry(**record)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that after a crash it is there whole or as it was before.

    Raises CannotCreateError, MissingInputError (no such folder) or IoFailedError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise from_os(error) from error


def fingerprint(folder: Path) -> str:
    """Return a digest of a checkpoint folder's file names, sizes and times.

    Cheap (no content is read), and enough to notice that a folder changed since it was converted;
    the converter records the digests of the contents.

    Raises MissingInputError when the folder cannot be read.
    """
    lines = []
    try:
        for file in sorted(folder.iterdir()):
            if file.is_file():
                stat = file.stat()
                lines.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    except OSError as error:
        raise MissingInputError(
            f"cannot read the folder {folder}: {error.strerror}",
            code="source_missing",
            hint="pass a folder that you can read",
        ) from error
    text = "\n".join([str(folder.resolve()), *lines])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def sync_folder(folder: Path) -> None:
    """Put renames in a folder on the disk. Windows has no such call and needs none.

    Raises OSError.
    """
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
