"""Which files of the store are in use right now, told by locks that end with their holder."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_use(file: Path) -> Iterator[None]:
    """Keep `store gc` from removing a file, or the files of one model, while the block runs.

    A shared lock of the kernel on the file itself: it ends with this process however that ends,
    and it holds under every name that the file has.
    """
    try:
        import fcntl
    except ImportError:  # Windows does not let a file go that is open
        yield
        return
    with contextlib.ExitStack() as held:
        # A filesystem without locks is no reason not to serve.
        for one in _series(file):
            with contextlib.suppress(OSError):
                fd = os.open(one, os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_SH)
        yield


def _series(file: Path) -> list[Path]:
    """The files of a model in several, by their names; another file is alone."""
    first = "-00001-of-"
    stem, mark, _ = file.name.rpartition(first)
    if not mark:
        return [file]
    return sorted(file.parent.glob(f"{glob.escape(stem)}-?????-of-{file.name[-10:]}"))


def is_used(file: Path) -> bool:
    """Say whether any living process holds the file by `in_use`."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
