"""What a server says of its models' licences at /licence, and which licence a file comes under."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.facts import ModelCard
from edgekit.store import Entry, Store, read_entry

if TYPE_CHECKING:
    from edgekit_server.config import Notice


def notice_of(card: ModelCard, changes: str, weights: Path | None, data: Path) -> Notice:
    """Return a model's notice with the whole text of its licence, where that is here."""
    from edgekit.obligations import legal_texts, notice, words_of
    from edgekit_server.config import Notice

    parts = [notice(card, changes, None).decode()]
    try:
        for name, text in sorted(legal_texts(card, weights, data).items()):
            parts.append(f"--- {name} ---\n\n{text.decode('utf-8', 'replace')}")
    except EdgekitError as error:
        # Serving hands no copy on, so that a missing text is said and no reason to stop.
        parts.append(f"{error.message}.\n")
    licence = card.licence
    shown = words_of(licence).shown or licence.attribution
    return Notice(licence.name, shown, "\n".join(parts))


def notice_of_entry(
    card: ModelCard, entry: Entry, store: Store, weights: Path | None, data: Path
) -> Notice:
    """Return the notice of a file of the store: the papers that it came with, if it was carried."""
    from edgekit_server.config import Notice

    changes = f"converted to GGUF and quantized to {entry.filetype} by {entry.made_by}"
    ours = notice_of(card, changes, weights, data)
    names = sorted((name for name, _ in entry.papers if name.endswith(".txt")), key=_notice_first)
    try:
        texts = [
            f"--- {name} ---\n\n{paper.read_text(encoding='utf-8', errors='replace')}"
            for name in names
            if (paper := store.paper(entry, name)) is not None
        ]
    except OSError:
        texts = []  # `store verify` speaks of papers that are gone
    return Notice(ours.licence, ours.shown, "\n".join(texts)) if texts else ours


def _notice_first(name: str) -> tuple[bool, str]:
    return name != "NOTICE.txt", name


def entry_of(file: Path, store: Store) -> Entry | None:
    """Return the store's entry of a file that lies there, None for any other file."""
    for index in sorted((store.root / "index").glob("*/*.json")):
        try:
            entry = read_entry(index.read_bytes())
        except (OSError, ValueError):
            continue
        if store.path(entry).resolve() == file.resolve():
            return entry
    return None


def card_of(file: Path, store: Store) -> tuple[ModelCard, Entry] | None:
    """Return the model of the catalogue that a file of the store is."""
    from edgekit.catalogue import find_model

    entry = entry_of(file, store)
    if entry is None:
        return None
    try:
        return find_model(entry.model), entry
    except EdgekitError:
        return None


def own_words(file: Path) -> Notice | None:
    """Return what a GGUF says of its own licence; None where it says nothing or is damaged."""
    from edgekit.ready_gguf import inspect
    from edgekit_server.config import Notice

    try:
        metadata = inspect(file).metadata
    except EdgekitError:
        return None  # the server speaks of files that it cannot load
    name = metadata.get("general.license.name") or metadata.get("general.license")
    if not isinstance(name, str):
        return None
    link = metadata.get("general.license.link")
    where = f"\nText: {link}" if isinstance(link, str) else ""
    return Notice(name, None, f"Licence: {name}, by the file's own word{where}\n")
