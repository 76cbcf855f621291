"""The content-addressed store of model files.

    store/blobs/<sha256>.gguf          a finished file, named by its content
    store/index/<model>/<filetype>.json   which blob serves a model at a file type, and from what
    store/split/<sha256>-0000N-of-0000M.gguf   links that give the files of one model their names
    store/papers/<sha256>              licences and records that came with an installed model
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
from typing import Any, Final

import filelock

from edgekit.errors import (
    BadDataError,
    BusyError,
    CannotCreateError,
    MissingInputError,
    from_os,
)

SCHEMA = "edgekit.store-entry/1"
INSTALLED_SCHEMA = "edgekit.store-entry/2"
"""Of a model that was installed: in several files, with papers, or served from where it lies."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_SPLIT_MARK = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of an installed model. `head_sha256` is of its first bytes, for quick checks."""

    sha256: str
    bytes: int
    head_sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in the store. `source` tells a changed checkpoint from the one converted.

    An installed model has `parts`; of several, `sha256` still names the one file that was cut,
    so that what was found out about it holds. `papers` are (name, sha256). `medium` is the bundle
    that the files are served from, None when they lie in the store.
    """

    model: str
    filetype: str
    sha256: str
    file_bytes: int
    tensor_bytes: int
    source: str
    made_by: str
    parts: tuple[Part, ...] = ()
    papers: tuple[tuple[str, str], ...] = ()
    medium: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """What the names of its blobs are."""
        return tuple(part.sha256 for part in self.parts) or (self.sha256,)


_PLAIN: Final = {
    f.name: int if f.name.endswith("_bytes") else str
    for f in fields(Entry)
    if f.name not in ("parts", "papers", "medium")
}


class Store:
    """A folder of model files. Created on first write, readable by anyone who can read it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, entry: Entry) -> Path:
        """Return where the entry's file lies: the first one, of several."""
        names = self.names(entry)
        return names[0] if names else self.blobs(entry)[0]

    def blobs(self, entry: Entry) -> list[Path]:
        """Return the files of an entry, in order. One of a medium is a link to there."""
        return [self.root / "blobs" / f"{digest}.gguf" for digest in entry.digests]

    def names(self, entry: Entry) -> list[Path]:
        """Return the links by which llama.cpp finds the files of one model; none for one file."""
        count = len(entry.parts)
        if count < 2:
            return []
        name = f"{entry.sha256}-{{:05d}}-of-{count:05d}.gguf"
        return [self.root / "split" / name.format(n) for n in range(1, count + 1)]

    def paper(self, entry: Entry, name: str) -> Path | None:
        """Return a text that came with an installed model, None if there is none of that name."""
        digest = dict(entry.papers).get(name)
        return None if digest is None else self.root / "papers" / digest

    def find(self, model: str, filetype: str, source: str | None = None) -> Entry | None:
        """Return the entry whose files are there with the right sizes, made from `source` if given.

        The content is not read again: its digest was taken while it was written.

        Raises:
            BadDataError: the index entry cannot be read or is not ours.
            MissingInputError: it is served from a medium that is not there (`medium_missing`).
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
            size = sum(blob.stat().st_size for blob in self.blobs(entry))
            here = self.path(entry).is_file() and size == entry.file_bytes
        except OSError:
            here = False
        if not here and entry.medium is not None:
            raise MissingInputError(
                f"{model} {filetype} is served from {entry.medium}, and its files are not there",
                code="medium_missing",
                hint="put the medium back, or run edgekit bundle install DIR --in-place with the "
                "folder where it is now",
            )
        return entry if here else None

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


def content_of(file: Path) -> str:
    """Return the digest that a model file of the store is named by; of several, the whole's."""
    return _SPLIT_MARK.sub("", file.stem)


def plain_record(entry: Entry) -> dict[str, str | int]:
    """Return what an entry says of the model, without how it lies in this store."""
    return {name: getattr(entry, name) for name in _PLAIN}


def entry_bytes(entry: Entry) -> bytes:
    """Return the one spelling of an index entry, with a digest of itself."""
    record: dict[str, object] = {"schema": SCHEMA, **plain_record(entry)}
    if entry.parts:
        record = {"schema": INSTALLED_SCHEMA, **asdict(entry)}
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
    if not isinstance(record, dict):
        raise ValueError(f"not an {SCHEMA} record")
    schema = record.pop("schema", None)
    if schema not in (SCHEMA, INSTALLED_SCHEMA):
        raise ValueError(f"not an {SCHEMA} record")
    record.pop("check", None)
    installed = _installed(record) if schema == INSTALLED_SCHEMA else {}
    if record.keys() != _PLAIN.keys() or any(type(record[n]) is not k for n, k in _PLAIN.items()):
        raise ValueError("fields are missing, unknown or of the wrong type")
    # The digest becomes a file name: nothing else may stand there.
    if not _SHA256.fullmatch(record["sha256"]):
        raise ValueError("sha256 is not a digest")
    return Entry(**record, **installed)


def _installed(record: dict[str, Any]) -> dict[str, Any]:
    """Take what only installed models have out of a record. Raises ValueError."""
    try:
        parts = tuple(Part(**part) for part in record.pop("parts"))
        listed = record.pop("papers")
        papers = tuple((name, digest) for name, digest in listed)
        medium = record.pop("medium")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("fields are missing, unknown or of the wrong type") from error
    digests = [d for part in parts for d in (part.sha256, part.head_sha256)]
    digests += [digest for _, digest in papers]
    if not all(isinstance(d, str) and _SHA256.fullmatch(d) for d in digests) or not parts:
        raise ValueError("a part or a paper has no digest")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name, _ in papers):
        raise ValueError("a paper's name is none")
    if not all(type(part.bytes) is int and part.bytes >= 0 for part in parts):
        raise ValueError("a part has no size")
    if not all(isinstance(pair, list) for pair in listed) or not isinstance(listed, list):
        raise ValueError("the papers are no pairs")
    if not isinstance(medium, str | None):
        raise ValueError("the medium is no path")
    return {"parts": parts, "papers": papers, "medium": medium}


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


def file_sha256(path: Path) -> str:
    """Return the digest of a file's bytes. Raises OSError as reading does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
