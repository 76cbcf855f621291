"""Put a file that is already here into another place without a second copy, where possible."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final, Literal

from edgekit.errors import from_os

How = Literal["reflink", "hardlink", "copy"]

_FICLONE: Final = 0x40049409
"""ioctl of Linux that lets two files share their blocks until one is written (linux/fs.h)."""


def place(source: Path, target: Path) -> How:
    """Make `target` have the content of `source`: reflink, else hard link, else a copy.

    `target` appears whole or not at all and must not exist. A copy is synced to the disk.

    Raises CannotCreateError, MissingInputError or IoFailedError.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            how = _fill(source, partial)
            os.replace(partial, target)
            return how
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise from_os(error) from error


def share(source: Path, target: Path) -> How | None:
    """Give one content a second name: reflink, else hard link; None where neither is possible.

    Raises OSError when the source cannot be opened.
    """
    if _reflink(source, target):
        return "reflink"
    try:
        os.link(source.resolve(), target)
    except OSError:
        # Another filesystem, or one without links, such as exFAT.
        return None
    return "hardlink"


def _fill(source: Path, partial: Path) -> How:
    if (how := share(source, partial)) is not None:
        return how
    with source.open("rb") as old, partial.open("wb") as new:
        shutil.copyfileobj(old, new, 4 << 20)
        new.flush()
        os.fsync(new.fileno())
    return "copy"


def _reflink(source: Path, partial: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    with source.open("rb") as old:
        try:
            with partial.open("xb") as new:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            return False
    return True
