"""A bundle whose seal holds: what is read through it is what was signed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.bundle.delta import read_needs
from edgekit.bundle.keys import Trust
from edgekit.bundle.layout import MAX_JSON_BYTES, Descriptor, Layout
from edgekit.bundle.model import BundledModel, models_of
from edgekit.bundle.seal import Seal, read_seal
from edgekit.errors import BadDataError, from_os
from edgekit.store import entry_bytes, read_entry

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Opened:
    """A bundle and its models. No weight was read yet."""

    root: Path
    seal: Seal
    layout: Layout
    models: tuple[BundledModel, ...]
    needs: Mapping[str, int]
    """Bytes by sha256 of the files that lie in the store already, or nothing is installed."""

    def blob(self, descriptor: Descriptor) -> Path:
        """Return where a signed blob lies. Raises BadDataError when the seal does not list it."""
        name = f"blobs/sha256/{descriptor.hex}"
        left_out = self.needs.get(descriptor.hex) == descriptor.size
        if self.seal.digests.get(name) != descriptor.hex and not left_out:
            raise _bad(f"{name} is not signed under its own digest")
        return self.layout.blob(descriptor.digest)

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, proven. Raises BadDataError."""
        try:
            with self.blob(descriptor).open("rb") as file:
                data = file.read(MAX_JSON_BYTES + 1)
        except OSError as error:
            raise from_os(error) from error
        if hashlib.sha256(data).hexdigest() != descriptor.hex:
            raise _bad(f"{descriptor.digest} does not hold what its name says")
        return data


def open_bundle(root: Path, trust: Trust) -> Opened:
    """Read the seal, then what it covers of the models' records.

    Raises:
        BadDataError, DeniedError, MissingInputError: see `read_seal`; a record that cannot be
            (`bad_layout`).
    """
    seal = read_seal(root, trust)
    layout = Layout(root, sealed=seal.digests)
    needs = read_needs(root, seal.digests)
    found = Opened(root, seal, layout, tuple(models_of(layout)), needs)
    for model in found.models:
        _check(found, model)
    return found


def _check(found: Opened, model: BundledModel) -> None:
    """Names become paths in the store; whoever signed them, they must be names."""
    entry = model.entry
    try:
        if read_entry(entry_bytes(entry)) != entry:
            raise _bad("a model's entry is not whole")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _bad(f"a model's entry is not whole: {error}") from error
    for name in (entry.model, entry.filetype, *model.documents):
        if not _NAME.fullmatch(name):
            raise _bad(f"{name[:80]!r} cannot name a model or a text")
    if not model.files:
        raise _bad(f"{entry.model} has no files")
    for file in (*model.files, *model.documents.values()):
        found.blob(file)
    if len(model.files) == 1 and model.files[0].hex != entry.sha256:
        raise _bad(f"{entry.model} is another file than its entry names")


def _bad(why: str) -> BadDataError:
    return BadDataError(
        f"the bundle cannot be used: {why}",
        code="bad_layout",
        hint="get the bundle again from its maker",
    )
