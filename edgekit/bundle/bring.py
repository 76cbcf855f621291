"""Bring one file of a bundle into the store: shared where possible, else one copy that hashes.

The digest is taken through the very descriptor that is copied, or of the file that stays. A copy
is noted chunk by chunk; after a kill or a medium that was pulled out, at most one chunk is read
from the medium again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from edgekit.errors import BadDataError, IoFailedError, from_os
from edgekit.fetch_journal import Mark, done_line, head_line, mark_line, read_journal
from edgekit.placing import How, share
from edgekit.store import sync_folder

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES: Final = 64 << 20
"""What is done again after a kill, at most. A multiple of what is read at once."""

READ_BYTES: Final = 4 << 20
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""Links are not followed: the seal speaks of plain files."""
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a bundle: where it is, and what was signed of it."""

    source: Path
    sha256: str
    bytes: int


def bring(
    wanted: Wanted,
    target: Path,
    journal: Path,
    *,
    sharing: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Progress | None = None,
) -> How:
    """Make `target` hold the wanted bytes, on the disk and proven.

    `target` and `journal` may be what an earlier run left. `progress` gets the bytes read.

    Raises:
        BadDataError: the source holds other bytes (`files_differ`); nothing is left of it.
        IoFailedError: the source cannot be read to its end (`medium_gone`); what is there stays.
        CannotCreateError: the disk is full; what is there stays.
    """
    told = progress or (lambda _: None)
    try:
        if not journal.exists():
            target.unlink(missing_ok=True)
            how = _shared(wanted, target) if sharing else None
            if how is not None:
                if hash_file(target, told) != wanted.sha256:
                    target.unlink()
                    raise differs(wanted)
                _sync(target)
                return how
        digest = _copied(wanted, target, journal, chunk_bytes, told)
        if digest != wanted.sha256:
            target.unlink()
            journal.unlink()
            raise differs(wanted)
        sync_folder(target.parent)
    except OSError as error:
        raise from_os(error) from error
    return "copy"


def hash_file(path: Path, progress: Progress) -> str:
    """Return the sha256 of a file. Raises OSError."""
    sha, view = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            sha.update(view[:count])
            progress(count)
    return sha.hexdigest()


def hash_source(wanted: Wanted, progress: Progress) -> None:
    """Read a file where it lies and compare. Raises as `bring`, without writing anything."""
    sha, view, at = hashlib.sha256(), memoryview(bytearray(READ_BYTES)), 0
    with _opened(wanted, 0) as file:
        while at < wanted.bytes:
            try:
                count = read_into(file, view[: wanted.bytes - at])
            except OSError as error:
                raise gone(wanted, at, error.strerror or str(error)) from error
            if not count:
                raise gone(wanted, at, "the file ends there")
            sha.update(view[:count])
            at += count
            progress(count)
    if sha.hexdigest() != wanted.sha256:
        raise differs(wanted)


def brought_bytes(target: Path, journal: Path) -> int:
    """Return how much of a file an earlier run brought, as its journal says."""
    with contextlib.suppress(OSError):
        found = read_journal(journal.read_bytes())
        if found is not None:
            # Files have their blocks as they are written here.
            return min(target.stat().st_size, max((m.end for m in found.marks.values()), default=0))
    return 0


def differs(wanted: Wanted) -> BadDataError:
    """Say that a file of the bundle is not what was signed."""
    return BadDataError(
        f"{wanted.source} does not hold the bytes that were listed",
        code="files_differ",
        hint="copy the bundle again from where it was whole, or get it again from its maker",
    )


def gone(wanted: Wanted, done: int, why: str) -> IoFailedError:
    """Say that the medium cannot be read any more, and that nothing is lost."""
    return IoFailedError(
        f"{wanted.source} could not be read after {done:,} of {wanted.bytes:,} bytes: {why}",
        code="medium_gone",
        hint="put the medium back and run the same command again; it goes on from there",
    )


def _shared(wanted: Wanted, target: Path) -> How | None:
    try:
        return share(wanted.source, target)
    except OSError as error:
        raise gone(wanted, 0, error.strerror or str(error)) from error


def _copied(
    wanted: Wanted, target: Path, journal: Path, chunk_bytes: int, progress: Progress
) -> str:
    """Copy what is not there yet; return the digest of it all. Raises OSError of the target."""
    with journal.open("a+b") as notes, target.open("ab+"):
        pass
    with target.open("r+b", buffering=0) as new, journal.open("r+b") as notes:
        sha, at = _begun(wanted, new, notes, chunk_bytes)
        if at == wanted.bytes and wanted.bytes:
            return sha.hexdigest()
        new.truncate(at)
        new.seek(at)
        with _opened(wanted, at) as old:
            while at < wanted.bytes:
                end = min(at + chunk_bytes, wanted.bytes)
                part = _chunk(wanted, old, new, sha, at, end, progress)
                os.fsync(new.fileno())
                _note(notes, mark_line(Mark(at, end, part, whole=False)))
                at = end
        os.fsync(new.fileno())
        if sha.hexdigest() == wanted.sha256:
            _note(notes, done_line(wanted.sha256))
    return sha.hexdigest()


def _begun(wanted: Wanted, new: FileIO, notes: BinaryIO, chunk_bytes: int) -> tuple[_Hash, int]:
    """Return the running digest and how far it goes: of chunks that are as they were noted."""
    sha, at = hashlib.sha256(), 0
    found = read_journal(notes.read())
    this = (wanted.bytes, chunk_bytes, wanted.sha256)
    if found is None or (found.size, found.chunk, found.identity) != this:
        notes.seek(0)
        notes.truncate()
        _note(notes, head_line(wanted.bytes, chunk_bytes, wanted.sha256))
        return sha, 0
    notes.seek(found.valid_bytes)
    notes.truncate()
    view = memoryview(bytearray(READ_BYTES))
    while (mark := found.marks.get(at)) is not None:
        so_far, part, left = sha.copy(), hashlib.sha256(), mark.end - at
        while left and (count := new.readinto(view[: min(left, READ_BYTES)])):
            so_far.update(view[:count])
            part.update(view[:count])
            left -= count
        if left or part.hexdigest() != mark.sha256:
            break
        sha, at = so_far, mark.end
    return sha, at


def _opened(wanted: Wanted, at: int) -> FileIO:
    try:
        file = os.fdopen(os.open(wanted.source, _FLAGS), "rb", buffering=0)
        size = os.fstat(file.fileno()).st_size
        file.seek(at)
    except OSError as error:
        raise gone(wanted, at, error.strerror or str(error)) from error
    if size != wanted.bytes:
        file.close()
        raise differs(wanted)
    return file


def _chunk(
    wanted: Wanted,
    old: FileIO,
    new: FileIO,
    sha: _Hash,
    at: int,
    end: int,
    progress: Progress,
) -> str:
    part, view = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    while at < end:
        try:
            count = read_into(old, view[: min(READ_BYTES, end - at)])
        except OSError as error:
            raise gone(wanted, at, error.strerror or str(error)) from error
        if not count:
            raise gone(wanted, at, "the file ends there")
        sha.update(view[:count])
        part.update(view[:count])
        written = 0
        while written < count:
            written += new.write(view[written:count])
        at += count
        progress(count)
    return part.hexdigest()


def read_into(file: FileIO, view: memoryview) -> int:
    """Read from the medium. Raises OSError when it is gone."""
    return file.readinto(view) or 0


def _note(notes: BinaryIO, line: bytes) -> None:
    notes.write(line)
    notes.flush()
    os.fsync(notes.fileno())


def _sync(path: Path) -> None:
    # What the other name has may be on its way to the disk still.
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)
