"""Make a bundle: models, what runs them, and a seal over it all.

A run that is killed goes on where it was: finished blobs are noted in a journal, half a blob is
compared with its source and continued. The same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit.bundle import seal
from edgekit.bundle.delta import NEEDS, Base, leave_out, needs_bytes
from edgekit.bundle.journal import Journal
from edgekit.bundle.layout import Descriptor, Layout
from edgekit.bundle.model import SPLIT_BYTES, add_model
from edgekit.bundle.papers import papers_of
from edgekit.errors import CannotCreateError, from_os
from edgekit.facts import ModelCard
from edgekit.preflight import check_room
from edgekit.store import Entry, write_durably

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

JOURNAL: Final = ".edgekit-create.json"
Add = Callable[[Layout], Sequence[Descriptor]]
"""Writes blobs and returns manifests for the index."""


@dataclass(frozen=True, slots=True)
class Item:
    """A model to carry: the file in the store, and texts that go with it."""

    card: ModelCard
    entry: Entry
    gguf: Path
    documents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Created:
    """A finished bundle."""

    root: Path
    bytes: int
    files: int
    signed: bool


def create(
    root: Path,
    items: Sequence[Item],
    key: EllipticCurvePrivateKey | None,
    *,
    runtimes: Sequence[Add] = (),
    texts: Mapping[str, bytes] | None = None,
    split_bytes: int = SPLIT_BYTES,
    base: Base | None = None,
    progress: Callable[[int], None] | None = None,
) -> Created:
    """Write a bundle into the folder `root`, which must be new or of a run that was killed.

    `runtimes` add what runs the models (wheels for a target). `texts` are files beside the index,
    by relative path. With a `base`, what that older bundle holds is left out. Raises
    EdgekitError: the folder holds something else (`not_empty`), no room, a damaged model file.
    """
    journal = Journal(root / JOURNAL)
    if root.exists() and any(root.iterdir()) and not journal.exists:
        raise CannotCreateError(
            f"{root} is not empty",
            code="not_empty",
            hint="choose a new folder; a bundle is never changed once it is sealed",
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    # First of all: a folder with anything in it and no journal is not gone on with.
    journal.begin()
    layout = Layout(root, journal)
    layout.start()
    if base is not None:
        layout.elsewhere = base.keys
    check_room(root, _bytes_to_come(items, base) - _blob_bytes(root))
    manifests = [
        add_model(
            layout,
            item.card,
            item.entry,
            item.gguf,
            item.documents,
            split_bytes=split_bytes,
            progress=progress,
        )
        for item in items
    ]
    for add in runtimes:
        manifests += add(layout)
    layout.write_index(manifests)
    texts = {**papers_of(layout), **(texts or {})}
    if base is not None:
        texts[NEEDS] = needs_bytes(leave_out(layout, base))
    _write_texts(root, texts)
    # What runs that were killed left of small files; nothing of ours ends so.
    for left in root.rglob(".*.partial"):
        left.unlink()
    digests = seal.close(root, key, progress, without=(JOURNAL,))
    # Last of all: with it gone, the folder is sealed and no run may go on in it.
    journal.end()
    size = sum((root / name).stat().st_size for name in digests)
    return Created(root, size, len(digests), key is not None)


def _write_texts(root: Path, texts: Mapping[str, bytes]) -> None:
    for name, text in texts.items():
        try:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os(error) from error
        write_durably(root / name, text)


def _bytes_to_come(items: Sequence[Item], base: Base | None) -> int:
    known = base.keys.items() if base is not None else ()
    models = {item.entry.sha256 for item in items}
    held = sum(size for key, (_, size) in known if key.partition(" ")[0] in models)
    return sum(item.entry.file_bytes for item in items) - held


def _blob_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "blobs").rglob("*") if path.is_file())
