"""The chain of digests: what a GGUF was made from and by what.

Every key starts with `edgekit.` and none depends on the file type, so quantizing our BF16 file
with llama-quantize gives the very bytes that a direct conversion gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from edgekit_quantize.metadata import KeyValue, string

PREFIX = "edgekit."
CONVERTER = "edgekit_quantize/1"
"""Raised when the same input would give other bytes."""


def listing_digest(digests: Mapping[str, str]) -> str:
    """Return one digest for several files: the sha256 of its `sha256sum` listing, sorted by name.

    `digests` maps file names to hexadecimal sha256. Check it by hand with
    `sha256sum FILES | LC_ALL=C sort -k2 | sha256sum`.
    """
    listing = "".join(
        f"{digests[name]}  {name}\n" for name in sorted(digests, key=lambda name: name.encode())
    )
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def provenance_metadata(digest: str, engine: str) -> list[KeyValue]:
    """Return our keys. `engine` names the library whose kernels quantized, with its version."""
    return [
        string(f"{PREFIX}source.digest", digest),
        string(f"{PREFIX}converter", CONVERTER),
        string(f"{PREFIX}quantizer", engine),
    ]
