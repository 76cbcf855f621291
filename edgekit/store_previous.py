"""What served a model before: kept when another file takes its place, so that a bad one can go.

    store/previous/<model>/<filetype>.json   the newest two entries that have had the place

The index alone says which of the two serves. So going back is one small file that is written
whole, and `store gc` leaves the files of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgekit.errors import BadDataError, MissingInputError, from_os
from edgekit.store import Entry, Store, entry_bytes, read_entry, write_durably

SCHEMA: Final = "edgekit.store-previous/1"


def remember(store: Store, entry: Entry) -> None:
    """Note the entry that `entry` is about to replace. The caller holds `store.publishing()`.

    The same content again replaces nothing. Raises EdgekitError.
    """
    old = _serving(store, entry.model, entry.filetype)
    if old is None or old.sha256 == entry.sha256:
        return
    path = _path(store, entry.model, entry.filetype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os(error) from error
    write_durably(path, _spelled((old, entry)))


def previous(store: Store, model: str, filetype: str) -> Entry | None:
    """Return the entry that `roll_back` would go to. Raises BadDataError for a damaged note."""
    now = _serving(store, model, filetype)
    known = _read(_path(store, model, filetype))
    return next((e for e in known if now is None or e.sha256 != now.sha256), None)


def roll_back(store: Store, model: str, filetype: str) -> Entry:
    """Let the entry before the present one serve again; a second time undoes that.

    Running servers keep their file; the next start takes the other. Raises MissingInputError
    (`no_previous`, `previous_gone`), BadDataError or CannotCreateError.
    """
    try:
        with store.publishing():
            found = previous(store, model, filetype)
            if found is None:
                raise MissingInputError(
                    f"nothing served {model} {filetype} before what does now",
                    code="no_previous",
                    hint="edgekit store shows what there is",
                )
            if not is_whole(store, found):
                raise MissingInputError(
                    f"the files that served {model} {filetype} before are not whole any more",
                    code="previous_gone",
                    hint="install the older bundle again",
                )
            write_durably(store.root / "index" / model / f"{filetype}.json", entry_bytes(found))
    except OSError as error:
        raise from_os(error) from error
    return found


def remembered(store: Store) -> list[Entry]:
    """Return every entry of every note. Raises BadDataError for a damaged one."""
    notes = sorted((store.root / "previous").glob("*/*.json"))
    return [entry for path in notes for entry in _read(path)]


def damaged(store: Store) -> Iterator[tuple[Path, BadDataError]]:
    """Give the notes that cannot be read."""
    for path in sorted((store.root / "previous").glob("*/*.json")):
        try:
            _read(path)
        except BadDataError as error:
            yield path, error


def is_whole(store: Store, entry: Entry) -> bool:
    """Say whether an entry's files are there with their sizes."""
    try:
        size = sum(blob.stat().st_size for blob in store.blobs(entry))
        return size == entry.file_bytes and store.path(entry).is_file()
    except OSError:
        return False


def _serving(store: Store, model: str, filetype: str) -> Entry | None:
    try:
        return read_entry((store.root / "index" / model / f"{filetype}.json").read_bytes())
    except (OSError, ValueError):
        return None


def _path(store: Store, model: str, filetype: str) -> Path:
    return store.root / "previous" / model / f"{filetype}.json"


def _spelled(entries: tuple[Entry, ...]) -> bytes:
    records = [json.loads(entry_bytes(entry)) for entry in entries]
    return (json.dumps({"schema": SCHEMA, "entries": records}, indent=2) + "\n").encode()


def _read(path: Path) -> list[Entry]:
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(f"not an {SCHEMA} record")
        # As it is spelled in the index: that is what has a digest of itself.
        found = [read_entry(json.dumps(entry).encode()) for entry in record["entries"]]
        if json.loads(_spelled(tuple(found))) != record:
            raise ValueError("does not agree with its own digests")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise from_os(error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadDataError(
            f"the note {path} of what served before is damaged: {error}",
            code="store_entry_damaged",
            hint=f"delete {path}; there is nothing to go back to then",
        ) from error
    return found
