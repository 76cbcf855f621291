"""A file that appears under its name whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType

from edgekit_quantize.errors import BusyError, CannotCreateError, IoFailedError, QuantizeError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class PartialFile:
    """Writes to `.NAME.partial` beside the destination; `commit` renames it.

    Leaving the context without a commit removes the partial file. One left by a killed process
    is overwritten by the next. A lock keeps two processes from writing the same destination.
    """

    def __init__(self, destination: Path, expected_bytes: int) -> None:
        """Raises CannotCreateError when the place has no room or is not writable, BusyError."""
        self.destination = destination
        self.path = destination.with_name(f".{destination.name}.partial")
        self.sha256 = hashlib.sha256()
        self.written = 0
        self._committed = False
        if destination.is_dir():
            raise CannotCreateError(f"{destination} is a folder", code="is_a_folder")
        try:
            free = shutil.disk_usage(destination.parent).free
            if free < expected_bytes:
                raise CannotCreateError(
                    f"{destination.parent} has {free} bytes free, {expected_bytes} are needed",
                    code="disk_full",
                    hint="free some space, or choose another destination",
                )
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | _CLOSE_ON_EXEC, 0o666)
        except OSError as error:
            raise _mapped(error, self.path) from error
        try:
            _lock(self._fd, self.path)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            self._discard()
            raise _mapped(error, self.path) from error

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`. Raises CannotCreateError when the disk is full, IoFailedError."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self.sha256.update(view)
        while view:
            try:
                count = os.write(self._fd, view)
            except OSError as error:
                raise _mapped(error, self.path) from error
            self.written += count
            view = view[count:]

    def sync(self) -> None:
        """Put the bytes on the disk, so that a later rename cannot outrun them."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _mapped(error, self.path) from error

    def commit(self) -> None:
        """Rename the synced file to its destination and sync the folder."""
        try:
            self.path.replace(self.destination)
            self._committed = True
            _sync_folder(self.destination.parent)
        except OSError as error:
            raise _mapped(error, self.destination) from error

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._committed:
            os.close(self._fd)
        else:
            self._discard()

    def _discard(self) -> None:
        # Unlink while the lock is held: nobody else's partial file can be the one removed.
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._fd)


_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def _lock(fd: int, path: Path) -> None:
    """Take the file's lock; skipped where there is no flock (Windows)."""
    try:
        import fcntl
    except ImportError:
        return
    busy = BusyError(
        f"another process is writing {path}",
        code="destination_busy",
        hint="wait for it, or choose another destination",
    )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise busy from error
    # Between open and lock the holder may have renamed or removed the file we opened.
    try:
        current = path.stat()
    except FileNotFoundError as error:
        raise busy from error
    if not os.path.samestat(os.fstat(fd), current):
        raise busy


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _mapped(error: OSError, path: Path) -> QuantizeError:
    if error.errno in _NO_ROOM:
        return CannotCreateError(
            f"no room left while writing {path}: {error.strerror}",
            code="disk_full",
            hint="free some space, or choose another destination",
        )
    if error.errno in _NO_ACCESS:
        return CannotCreateError(
            f"cannot write {path}: {error.strerror}",
            code="cannot_create",
            hint="choose a destination in a folder that exists and is writable",
        )
    return IoFailedError(f"writing {path} failed: {error.strerror}", code="io_error")
