"""Fetched repositories in the store.

    store/checkpoints/<org>--<name>@<commit>-<selection>/   the files, under their own names
        edgekit-checkpoint.json                             names, sizes, digests, where from
    store/partial/<the same>/{files,journals}/              a fetch on its way

A plain folder, so that a converter reads it as it is and it can be copied anywhere; a manifest
that names every byte. `selection` tells two fetches of one commit with different patterns apart.
The folder appears whole, by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import filelock

from edgekit.errors import BadDataError, BusyError, CannotCreateError, from_os
from edgekit.hub_names import fault_of, matches
from edgekit.store import sync_folder, write_durably

MANIFEST: Final = "edgekit-checkpoint.json"
SCHEMA: Final = "edgekit.checkpoint/1"
MAX_MANIFEST_BYTES: Final = 32 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REPOSITORY: Final = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file. `check`: which digest of the hub it was held against, or "none"."""

    name: str
    bytes: int
    sha256: str
    check: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a fetched folder holds. `asked` is the revision that was asked for, such as main."""

    repository: str
    revision: str
    asked: str
    allow: tuple[str, ...]
    files: tuple[StoredFile, ...]
    made_by: str

    @property
    def digest(self) -> str:
        """Names the content: the same for two fetches of the same files, wherever they lie."""
        parts = sorted((f.name, f.bytes, f.sha256) for f in self.files)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of the store and its manifest."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a fetch puts things while its lock is held."""

    files: Path
    journals: Path


class Checkpoints:
    """The fetched repositories of a store. Created on first write."""

    def __init__(self, store: Path) -> None:
        self.root = store / "checkpoints"
        self.partial = store / "partial"

    def all(self) -> list[Checkpoint]:
        """Return what is there and readable, by name; `store verify` speaks of the rest."""
        found = []
        for folder in sorted(self.root.glob("[!.]*/")):
            with contextlib.suppress(BadDataError):
                found.append(Checkpoint(folder, read_folder(folder)))
        return found

    def find(
        self, repository: str, revision: str | None, allow: Sequence[str] = ()
    ) -> Checkpoint | None:
        """Return the fetched repository whose files are there with the right sizes.

        `revision`: a full commit, or what was asked for when it was fetched; None is any, the
        newest fetch first. A fetch by the same patterns is preferred; another is taken if it
        holds weights that they name.
        """
        fits = [
            c
            for c in self.all()
            if c.manifest.repository == repository
            and revision in (None, c.manifest.revision, c.manifest.asked)
            and _whole(c)
        ]
        fits.sort(key=lambda c: (c.manifest.allow == tuple(allow), c.folder.stat().st_mtime))
        for checkpoint in reversed(fits):
            if checkpoint.manifest.allow == tuple(allow) or _covers(checkpoint.manifest, allow):
                return checkpoint
        return None

    def holding(self, sha256: str, size: int) -> Path | None:
        """Return a file of this content that an earlier fetch brought."""
        for checkpoint in self.all():
            for file in checkpoint.manifest.files:
                path = checkpoint.folder / file.name
                if (file.sha256, file.bytes) == (sha256, size) and _size(path) == size:
                    return path
        return None

    @contextmanager
    def fetching(self, name: str) -> Iterator[Workplace]:
        """Hold the lock of one folder's fetch and give its workplace, with what is left there.

        Raises BusyError when another process fetches it, CannotCreateError when it cannot be made.
        """
        place = self.partial / name
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.partial / f"{name}.lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise BusyError(
                f"another process is fetching {name}",
                code="store_locked",
                hint="wait for it to finish and run the same command again",
            ) from None
        except OSError as error:
            raise CannotCreateError(
                f"cannot write to the store {self.partial.parent}: {error.strerror}",
                code="store_not_writable",
                hint="set EDGEKIT_STORE to a folder that you can write to",
            ) from error
        try:
            # gc may have been here between the two lines above.
            place.mkdir(parents=True, exist_ok=True)
            yield Workplace(place / "files", place / "journals")
        finally:
            lock.release()

    def publish(self, name: str, manifest: Manifest) -> Checkpoint:
        """Give a complete workplace its final name. What else lay in it is removed.

        Raises CannotCreateError or IoFailedError.
        """
        place, target = self.partial / name, self.root / name
        files = place / "files"
        wanted = {f.name for f in manifest.files}
        try:
            for path in sorted(files.rglob("*"), reverse=True):
                if path.is_file() and path.relative_to(files).as_posix() not in wanted:
                    path.unlink()
            write_durably(files / MANIFEST, to_bytes(manifest))
            for folder in {path.parent for path in files.rglob("*")}:
                sync_folder(folder)
            self.root.mkdir(parents=True, exist_ok=True)
            if target.exists():
                # Damaged, or it would have been found.
                os.replace(target, place / f"damaged-{os.getpid()}")
            os.replace(files, target)
            sync_folder(self.root)
            shutil.rmtree(place, ignore_errors=True)
        except OSError as error:
            raise from_os(error) from error
        return Checkpoint(target, manifest)


def folder_name(repository: str, revision: str, allow: Sequence[str]) -> str:
    """Return the name of a folder: readable, and its own for each commit and set of patterns."""
    selection = hashlib.sha256(json.dumps(sorted(allow)).encode()).hexdigest()[:8]
    return f"{repository.replace('/', '--')}@{revision}-{selection}"


def to_bytes(manifest: Manifest) -> bytes:
    """Return the one spelling of a manifest, with a digest of itself."""
    record = {"schema": SCHEMA, **asdict(manifest)}
    plain = json.dumps(record, sort_keys=True)
    record["check"] = hashlib.sha256(plain.encode()).hexdigest()
    return (json.dumps(record, indent=1) + "\n").encode()


def read_folder(folder: Path) -> Manifest:
    """Return the manifest of a folder. Raises BadDataError when it is missing or damaged."""
    file = folder / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("far too large")
        return read_manifest(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadDataError(
            f"{file} is damaged: {error}",
            code="manifest_damaged",
            hint=f"delete {folder}; edgekit pull fetches it again",
        ) from error


def read_manifest(data: bytes) -> Manifest:
    """Parse a manifest. Raises ValueError for anything but one that `to_bytes` wrote."""
    try:
        record = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict) or record.pop("schema", None) != SCHEMA:
        raise ValueError(f"no {SCHEMA} record")
    record.pop("check", None)
    try:
        files = tuple(StoredFile(**file) for file in record.pop("files"))
        manifest = Manifest(**record, files=files)
        manifest = Manifest(
            manifest.repository,
            manifest.revision,
            manifest.asked,
            tuple(manifest.allow),
            files,
            manifest.made_by,
        )
    except (TypeError, KeyError) as error:
        raise ValueError("fields are missing, unknown or of the wrong type") from error
    for file in files:
        if fault_of(file.name) or file.name == MANIFEST or type(file.bytes) is not int:
            raise ValueError("it names a file that cannot be")
        if not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
            raise ValueError("it holds a digest that is none")
    texts = (manifest.repository, manifest.revision, manifest.asked, manifest.made_by)
    if not all(isinstance(text, str) for text in (*texts, *manifest.allow)):
        raise ValueError("fields are of the wrong type")
    if not _REPOSITORY.fullmatch(texts[0]) or not _COMMIT.fullmatch(texts[1]):
        raise ValueError("it does not name a repository at a commit")
    if to_bytes(manifest) != data:
        raise ValueError("it does not agree with its own digest")
    return manifest


def _whole(checkpoint: Checkpoint) -> bool:
    return all(_size(checkpoint.folder / f.name) == f.bytes for f in checkpoint.manifest.files)


def _covers(manifest: Manifest, allow: Sequence[str]) -> bool:
    """Whether a fetch by other patterns has the weights that these name."""
    names = [f.name for f in manifest.files]
    if not allow:  # one whole checkpoint
        return "config.json" in names and any(matches(n, "model*.safetensors") for n in names)
    weights = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    return any(matches(name, pattern) for name in weights for pattern in allow)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
