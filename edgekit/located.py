"""Where a model's weights are on this machine, if they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgekit.checkpoints import Checkpoint
from edgekit.errors import MissingInputError
from edgekit.facts import ModelCard
from edgekit.hub_names import matches
from edgekit.origin import Want, want_of
from edgekit.store import fingerprint


@dataclass(frozen=True, slots=True)
class Located:
    """`weights` is a checkpoint's folder, `ready` a finished GGUF; both None when not here yet.

    `source` tells a changed checkpoint from the one that a stored file was made of.
    """

    weights: Path | None = None
    ready: Path | None = None
    source: str | None = None


def locate(card: ModelCard, given: Path | None, store: Path) -> Located:
    """Return what was given, else what ships with edgekit, else what was fetched earlier.

    Raises MissingInputError when what was given cannot be read.
    """
    if given is not None and given.is_file():
        return Located(None, given, _file_mark(given))
    folder = given or _own_folder(card)
    if folder is not None:
        return Located(folder, None, fingerprint(folder))
    want = want_of(card)
    if want is None:
        return Located()
    from edgekit.pull import find_here

    here = find_here(want, store)
    return Located() if here is None else of_checkpoint(here, want)


def of_checkpoint(here: Checkpoint, want: Want) -> Located:
    """Return a fetched repository: its GGUF if one was wanted, else the folder.

    Its mark is the digest of its contents, so that the store can be moved.
    """
    mark = here.manifest.digest
    if want.file is None:
        return Located(here.folder, None, mark)
    files = sorted(f.name for f in here.manifest.files if matches(f.name, want.file))
    if not files:
        raise MissingInputError(
            f"{here.folder} holds no GGUF",
            code="no_weights",
            hint=f"delete it and run edgekit pull {want.repository}/{want.file}",
        )
    return Located(None, here.folder / files[0], mark)


def _own_folder(card: ModelCard) -> Path | None:
    """Return the folder of a model that ships inside edgekit, or that a user's entry names."""
    for source in card.sources:
        if source.kind == "folder":
            return Path(source.location)
        if source.kind == "builtin":
            import edgekit_profiles

            return Path(edgekit_profiles.__file__).parent / source.location
    return None


def _file_mark(file: Path) -> str:
    stat = file.stat()
    text = f"{file.resolve()}\n{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
