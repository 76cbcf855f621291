"""The files of a folder and their digests, and nothing that is not a plain file."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgekit.errors import BadDataError, from_os

READ_BYTES = 4 << 20
THREADS = 2
"""A stick is the limit, not the processor; two reads keep it busy."""


def list_files(root: Path) -> dict[str, int]:
    """Return relative path -> bytes of every file under `root`, sorted, paths with `/`.

    Raises:
        BadDataError: a link, a device, or two names that some file system takes for one
            (`not_a_plain_file`, `ambiguous_name`).
        EdgekitError: the folder cannot be read.
    """
    found: dict[str, int] = {}
    folded: dict[str, str] = {}
    for path, info in _walk(root):
        name = path.relative_to(root).as_posix()
        if not stat.S_ISREG(info.st_mode):
            raise BadDataError(
                f"{name} is no plain file but a {_kind(info.st_mode)}",
                code="not_a_plain_file",
                hint="copy the folder again; it holds plain files only",
            )
        other = folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise BadDataError(
                f"{name!r} and {other!r} are one name on some file systems",
                code="ambiguous_name",
                hint="remove the one that does not belong there",
            )
        found[name] = info.st_size
    return dict(sorted(found.items()))


def hash_files(
    root: Path, names: Mapping[str, int], progress: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Return relative path -> sha256 in hexadecimal. `progress(bytes)` comes from the threads.

    Raises EdgekitError when a file cannot be read.
    """

    def digest(name: str) -> str:
        sha = hashlib.sha256()
        buffer = bytearray(READ_BYTES)
        with (root / name).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                sha.update(memoryview(buffer)[:count])
                if progress is not None:
                    progress(count)
        return sha.hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return dict(zip(names, pool.map(digest, names), strict=True))
        except OSError as error:
            raise from_os(error) from error


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every entry that is no folder, without following links."""
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    yield from _walk(Path(entry.path))
                else:
                    yield Path(entry.path), info
    except OSError as error:
        raise from_os(error) from error


def _kind(mode: int) -> str:
    return "symbolic link" if stat.S_ISLNK(mode) else "device, pipe or socket"
