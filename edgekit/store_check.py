"""The quick look at a stored model before each start: sizes, and the first bytes of each file.

Damage further in is what `edgekit store verify` is for, which reads everything.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from edgekit.errors import BadDataError, MissingInputError
from edgekit.store import Entry, Store

HEAD_BYTES: Final = 1 << 20
"""The header's keys and the beginning of the vocabulary; a stick gives it in 10 ms."""


def head_digest(path: Path) -> str:
    """Return the sha256 of a file's first bytes. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()


def quick_check(store: Store, entry: Entry) -> None:
    """Compare the files of an installed model with what was noted when they were placed.

    Raises:
        BadDataError: one has another size or another beginning (`store_damaged`).
        MissingInputError: one cannot be read; names the medium if it lies on one.
    """
    for part, blob in zip(entry.parts, store.blobs(entry), strict=False):
        try:
            size, head = blob.stat().st_size, head_digest(blob)
        except OSError as error:
            raise MissingInputError(
                f"{blob} cannot be read: {error.strerror}"
                + (f"; {entry.model} is served from {entry.medium}" if entry.medium else ""),
                code="medium_missing" if entry.medium else "file_missing",
                hint="put the medium back" if entry.medium else mend(entry),
            ) from error
        if (size, head) != (part.bytes, part.head_sha256):
            where = blob.resolve() if entry.medium else blob
            what = "its first bytes differ" if size == part.bytes else f"it has {size:,} bytes"
            raise BadDataError(
                f"{where} is not as it was installed: {what}",
                code="store_damaged",
                hint=mend(entry),
            )


def mend(entry: Entry) -> str:
    """Say what brings an installed model's files back."""
    again = "edgekit bundle install DIR" + (" --in-place" if entry.medium else "")
    return f"{again}, with the bundle that brought {entry.model}, mends it"
