"""From a name and a source, as people give them, to a model's card and the place of its weights."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.catalogue import find_filetype
from edgekit.errors import MissingInputError, UsageError
from edgekit.facts import ModelCard, Source
from edgekit.origin import Want, hub_reference, parse_origin
from edgekit.source import card_for

if TYPE_CHECKING:
    from edgekit.hub import Listing
    from edgekit.pull import Options
    from edgekit.ready_gguf import ReadyGguf


@dataclass(frozen=True, slots=True)
class Named:
    """`place` is a folder or a GGUF of this machine; None: where the card's sources say.

    `filetype` is given by a finished GGUF, which is only ever served as it is.
    """

    card: ModelCard
    place: Path | None
    filetype: str | None = None


def find_named(name: str, source: Path | None, store: Path, options: Options) -> Named:
    """Find the card of a model, from the catalogue, a folder, a GGUF or a hub's repository.

    A repository that no catalogue knows is asked for its config.json alone.

    Raises as `source.card_for`, `pull.look`, `ready_gguf.inspect`.
    """
    if source is None:
        try:
            return Named(card_for(name, None), None)
        except MissingInputError as error:
            want = hub_reference(name) if error.code == "model_unknown" else None
            if want is None:
                raise
        return Named(_of_repository(_plain(want.repository), want, store, options), None)
    origin = parse_origin(str(source))
    if isinstance(origin, Want):
        if origin.file is None:
            return Named(_of_repository(name, origin, store, options), None)
        return _of_gguf(name, _fetched_gguf(origin, store))
    return _of_gguf(name, origin) if origin.is_file() else Named(card_for(name, origin), origin)


def _plain(repository: str) -> str:
    return re.sub(r"[^a-z0-9._-]", "-", repository.rsplit("/", 1)[-1].lower())


def _of_gguf(name: str, path: Path) -> Named:
    from edgekit.ready_gguf import check_same, inspect

    found = inspect(path)
    try:
        card = card_for(name, None)
    except MissingInputError as error:
        raise MissingInputError(
            f"{error.message}, and a GGUF alone does not say what edgekit plans with",
            code=error.code,
            hint=f"run it as it is with edgekit serve {path}, or use a name of edgekit models",
        ) from error
    check_same(card, found)
    return Named(card, found.path, _planned_type(found))


def _planned_type(found: ReadyGguf) -> str:
    """Return the file type to plan with. Raises UsageError for a mix that has no name."""
    if found.filetype is None:
        raise UsageError(
            f"{found.path} does not say which file type it is",
            code="unknown_file_type",
            hint=f"run it as it is with edgekit serve {found.path}",
        )
    return find_filetype(found.filetype).id


def _fetched_gguf(want: Want, store: Path) -> Path:
    from edgekit.located import of_checkpoint
    from edgekit.pull import find_here

    here = find_here(want, store)
    ready = of_checkpoint(here, want).ready if here else None
    if ready is None:
        revision = f"@{want.revision}" if want.revision else ""
        raise MissingInputError(
            f"{want.file} of {want.repository} is not in the store",
            code="weights_missing",
            hint=f"edgekit pull {want.repository}/{want.file}{revision}",
        )
    return ready


def _of_repository(name: str, want: Want, store: Path, options: Options) -> ModelCard:
    from edgekit.pull import find_here, look

    if (here := find_here(want, store)) is not None:
        card = card_for(name, here.folder)
        revision, size = here.manifest.revision, here.manifest.bytes
    else:
        listing = look(want, options)
        with tempfile.TemporaryDirectory(prefix="edgekit-") as place:
            peek(listing, ("config.json",), Path(place))
            card = card_for(name, Path(place))
        revision, size = listing.revision, listing.bytes
    source = Source("hub", want.repository, revision, want.allow, size)
    return replace(card, sources=(source,))


def peek(listing: Listing, names: Sequence[str], folder: Path) -> None:
    """Fetch a few small files of a repository into a folder, as `fetch` does."""
    from edgekit.fetch import fetch, works_for
    from edgekit.fetch_http import Home

    files = [file for file in listing.files if file.name in names]
    if len(files) < len(names):
        raise MissingInputError(
            f"{listing.repository} has no {' or '.join(names)}",
            code="checkpoint_missing",
            hint="name a repository with config.json and safetensors, or one GGUF of it: "
            "org/name/file.gguf",
        )
    home = Home(listing.repository, listing.revision, listing.endpoint, listing.headers)
    fetch(works_for(files, folder, folder / ".journals"), home, connections=1)
