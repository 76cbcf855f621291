"""The content-addressed store of model files.

    store/blobs/<sha256>.gguf          a finished file, named by its content
    store/index/<model>/<filetype>.json   which blob serves a model at a file type, and from what
    store/partial/                     work in progress; safe to delete when nothing runs

A writer holds the lock of its (model, file type) while it works; the lock is the kernel's, so it
ends with the process that holds it, however that process ends. Readers need no lock: a blob or an
index entry appears under its name whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from edgekit.errors import BadDataError, BusyError, CannotCreateError

SCHEMA = "edgekit.store-entry/1"


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
        return self.root / "blobs" / f"{entry.sha256}.gguf"

    def find(self, model: str, filetype: str, source: str | None = None) -> Entry | None:
        """Return the entry whose file is there with the right size, made from `source` if given.

        Raises BadDataError when the index entry cannot be read.
        """
        index = self._index(model, filetype)
        try:
            text = index.read_text()
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(text)
            fields.pop("schema")
            entry = Entry(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise BadDataError(
                f"the store's entry {index} is damaged: {error}",
                code="store_entry_damaged",
                hint=f"delete {index}; the next deploy makes it again",
            ) from error
        if source is not None and entry.source != source:
            return None
        try:
            size = self.path(entry).stat().st_size
        except FileNotFoundError:
            return None
        return entry if size == entry.file_bytes else None

    @contextmanager
    def writing(self, model: str, filetype: str) -> Iterator[Path]:
        """Hold the lock of (model, filetype) and give a path in `partial/` to write to.

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
            partial.unlink(missing_ok=True)
            lock.release()

    def add(self, partial: Path, entry: Entry) -> Path:
        """Move a finished file under its digest, then point the index at it; return its path."""
        blob = self.path(entry)
        os.replace(partial, blob)
        index = self._index(entry.model, entry.filetype)
        index.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": SCHEMA, **asdict(entry)}, indent=2) + "\n"
        write_durably(index, text.encode())
        return blob

    def _index(self, model: str, filetype: str) -> Path:
        return self.root / "index" / model / f"{filetype}.json"


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that after a crash it is there whole or as it was before."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def fingerprint(folder: Path) -> str:
    """Return a digest of a checkpoint folder's file names, sizes and times.

    Cheap (no content is read), and enough to notice that a folder changed since it was converted;
    the converter records the digests of the contents.
    """
    lines = []
    for file in sorted(folder.iterdir()):
        if file.is_file():
            stat = file.stat()
            lines.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join([str(folder.resolve()), *lines]).encode()).hexdigest()
