"""A bundle that carries only what is new since another: the rest must be in the store already.

`needs.json`, signed like everything else, lists the model files that were left out. Small blobs
and changed runtimes are carried whole, so the folder can be read, and edgekit installed, without
the older one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgekit.bundle.bring import hash_file
from edgekit.bundle.keys import Trust
from edgekit.bundle.layout import WEIGHT, Descriptor, Layout, encode
from edgekit.bundle.model import models_of
from edgekit.bundle.seal import read_seal
from edgekit.errors import BadDataError, MissingInputError, from_os
from edgekit.store import Store
from edgekit.units import format_bytes

NEEDS: Final = "needs.json"
SCHEMA: Final = "edgekit.bundle-needs/1"
SMALL_BYTES: Final = 1 << 20
"""Blobs up to here are always carried."""

_BLOB: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_SUM: Final = re.compile(r"([0-9a-f]{64})  blobs/sha256/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Base:
    """An older bundle: digests of the blobs it holds or needs, and which cuts of models they are.

    `keys` are (digest, bytes) by the journal's key: what is known there is not even read again.
    """

    digests: frozenset[str]
    keys: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def read_base(path: Path, trust: Trust) -> Base:
    """Return what an older bundle holds: its folder, or its SHA256SUMS alone.

    Raises MissingInputError (`no_base`), BadDataError or DeniedError for a folder not trusted.
    """
    if path.is_dir():
        seal = read_seal(path, trust)
        held = {m[1] for name in seal.digests if (m := _BLOB.fullmatch(name))}
        digests = frozenset(held | read_needs(path, seal.digests).keys())
        # Whoever could change an unsigned folder would choose what we sign.
        signed = models_of(Layout(path, sealed=seal.digests)) if seal.signer else []
        keys = {
            f"{m.entry.sha256} {n} {len(m.files)} {file.size}": (file.digest, file.size)
            for m in signed
            for n, file in enumerate(m.files)
            if file.size > SMALL_BYTES
        }
        return Base(digests, keys)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(
            f"{path} is no older bundle",
            code="no_base",
            hint="pass the folder of the older bundle, or its SHA256SUMS",
        ) from error
    found = [m for line in text.splitlines() if (m := _SUM.fullmatch(line))]
    return Base(frozenset(m[2] for m in found if m[1] == m[2]))


def leave_out(layout: Layout, base: Base) -> dict[str, int]:
    """Remove the blobs that the base holds and write `needs.json`; return sizes by sha256.

    Model files, and the wheels of runtimes that are the base's very own. Raises EdgekitError.
    """
    needs: dict[str, int] = {}
    kept: set[str] = set()
    for descriptor in layout.index():
        manifest = layout.manifest(descriptor)
        same = descriptor.hex in base.digests
        for layer in manifest.layers:
            known = layer.hex in base.digests and layer.size > SMALL_BYTES
            if known and layer.media_type == WEIGHT:
                needs[layer.hex] = layer.size
            elif not (known and same):
                kept.add(layer.hex)
            else:
                _remove(layout, layer)
    for digest in needs.keys() & kept:
        del needs[digest]
    for digest, size in needs.items():
        _remove(layout, Descriptor(WEIGHT, f"sha256:{digest}", size))
    return needs


def needs_bytes(needs: Mapping[str, int]) -> bytes:
    """Return the one spelling of `needs.json`. Pure."""
    blobs = [{"sha256": digest, "bytes": needs[digest]} for digest in sorted(needs)]
    return encode({"schema": SCHEMA, "blobs": blobs})


def read_needs(root: Path, sealed: Mapping[str, str] | None = None) -> dict[str, int]:
    """Return the files that a bundle left out, sizes by sha256; none for a whole one.

    `sealed`: the digests that the seal lists. Raises BadDataError (`bad_layout`).
    """
    if sealed is not None and NEEDS not in sealed:
        return {}
    try:
        raw = (root / NEEDS).read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise from_os(error) from error
    if sealed is not None and hashlib.sha256(raw).hexdigest() != sealed[NEEDS]:
        raise _bad("does not hold what was signed")
    try:
        record: dict[str, Any] = json.loads(raw)
        if record["schema"] != SCHEMA:
            raise _bad(f"is {record['schema']!r}")
        found = {str(blob["sha256"]): int(blob["bytes"]) for blob in record["blobs"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad("is no list of blobs") from error
    if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in found):
        raise _bad("names a blob without a sha256")
    return found


def check_needs(needs: Mapping[str, int], store: Store) -> None:
    """Make sure that the store has every file that was left out, with the right bytes.

    Raises MissingInputError (`base_missing`).
    """
    blobs = store.root / "blobs"
    missing = [d for d, size in needs.items() if not _is_here(blobs / f"{d}.gguf", d, size)]
    if missing:
        size = format_bytes(sum(needs[d] for d in missing))
        raise MissingInputError(
            f"the bundle carries only what is new, and {len(missing)} of the {len(needs)} model "
            f"files that it builds on ({size}) are not in the store",
            code="base_missing",
            hint="install the older bundle first, or get one that was made without --since",
        )


def _is_here(path: Path, digest: str, size: int) -> bool:
    try:
        # A link to a medium is not there for good.
        whole = not path.is_symlink() and path.stat().st_size == size
        return whole and hash_file(path, lambda _: None) == digest
    except OSError:
        return False


def _remove(layout: Layout, blob: Descriptor) -> None:
    try:
        layout.blob(blob.digest).unlink(missing_ok=True)
    except OSError as error:
        raise from_os(error) from error


def _bad(why: str) -> BadDataError:
    return BadDataError(
        f"{NEEDS} {why}", code="bad_layout", hint="get the folder again from its maker"
    )
