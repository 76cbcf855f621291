"""Bring a repository into the store: list, check the room, fetch, give it its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekit import __version__
from edgekit.checkpoints import (
    Checkpoint,
    Checkpoints,
    Manifest,
    StoredFile,
    Workplace,
    folder_name,
)
from edgekit.fetch import (
    CHUNK_BYTES,
    CONNECTIONS,
    Notice,
    Progress,
    Result,
    fetch,
    silent,
    works_for,
)
from edgekit.fetch_http import Home
from edgekit.fetch_journal import done_line, head_line
from edgekit.origin import Want
from edgekit.preflight import check_room
from edgekit.store import file_sha256

if TYPE_CHECKING:
    from edgekit.hub import Listing, RemoteFile

ROOM: Final = 1.02
"""Share of the bytes to come that must be free: journals, folders, the manifest."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to fetch. `mirror`: an address instead of the public hub's."""

    mirror: str | None = None
    offline: bool = False
    connections: int = CONNECTIONS
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Pulled:
    """A repository in the store. `result` and `listing` are None when it was there already."""

    checkpoint: Checkpoint
    result: Result | None
    listing: Listing | None


def find_here(want: Want, store: Path) -> Checkpoint | None:
    """Return what an earlier fetch brought, without asking anyone."""
    return Checkpoints(store).find(want.repository, want.revision, want.allow)


def find_settled(want: Want, store: Path, options: Options) -> Checkpoint | None:
    """Return what is here where asking a hub would change nothing, or is not allowed."""
    from edgekit import hub

    pinned = want.revision is not None and len(want.revision) == 40
    settled = pinned or options.offline or hub.offline_asked()
    return find_here(want, store) if settled else None


def look(want: Want, options: Options) -> Listing:
    """Ask the hub what would be fetched.

    Raises MissingInputError (`offline`) when it may not be asked, else as `hub.list_files`.
    """
    from edgekit import hub

    if options.offline or hub.offline_asked():
        raise hub.unavailable([f"{want.repository}@{(want.revision or 'main')[:12]}"])
    return hub.list_files(want.repository, want.revision, want.allow, mirror=options.mirror)


def pull(
    want: Want,
    store: Path,
    options: Options,
    *,
    listed: Listing | None = None,
    progress: Progress = silent,
    notice: Notice = silent,
    begin: Callable[[Listing], None] = silent,
) -> Pulled:
    """Return the repository in the store, fetching what is not there.

    A pinned commit that is there is not asked about again. `begin` is told what will be fetched.

    Raises as `look`, `fetch.fetch`, `Checkpoints.fetching`; CannotCreateError for lack of room.
    """
    from edgekit import hub

    if (here := find_settled(want, store, options)) is not None:
        return Pulled(here, None, None)
    listing = listed or look(want, options)
    at_commit = Want(want.repository, listing.revision, want.allow)
    if (here := find_here(at_commit, store)) is not None:
        return Pulled(here, None, listing)
    for note in listing.notes:
        notice(note)
    checkpoints = Checkpoints(store)
    name = folder_name(want.repository, listing.revision, want.allow)
    with checkpoints.fetching(name) as place:
        # Whoever held the lock until now may have fetched this very folder.
        if (here := find_here(at_commit, store)) is not None:
            return Pulled(here, None, listing)
        begin(listing)
        _use_what_is_here(checkpoints, listing, place, options.chunk_bytes)
        files = tuple(hub.iterate(listing))
        check_room(store, int(_to_come(files, place) * ROOM))
        works = works_for(files, place.files, place.journals, options.chunk_bytes)
        home = Home(listing.repository, listing.revision, listing.endpoint, listing.headers)
        result = fetch(
            works, home, connections=options.connections, progress=progress, notice=notice
        )
        stored = tuple(StoredFile(f.name, f.bytes, f.sha256, f.check) for f in result.files)
        manifest = Manifest(
            repository=listing.repository,
            revision=listing.revision,
            asked=want.revision or "main",
            allow=want.allow,
            files=stored,
            made_by=f"edgekit {__version__}",
        )
        return Pulled(checkpoints.publish(name, manifest), result, listing)


def _use_what_is_here(
    checkpoints: Checkpoints, listing: Listing, place: Workplace, chunk_bytes: int
) -> None:
    """Link files that another fetched revision has; their digest is taken again."""
    from edgekit.placing import place as put

    for file in listing.files:
        target = place.files / file.name
        if file.sha256 is None or target.exists():
            continue
        known = checkpoints.holding(file.sha256, file.size)
        if known is None or file_sha256(known) != file.sha256:
            continue
        put(known, target)
        journal = place.journals / f"{file.name}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_bytes(head_line(file.size, chunk_bytes, None) + done_line(file.sha256))


def _to_come(files: Sequence[RemoteFile], place: Workplace) -> int:
    """Return the bytes that the disk must still take: what journals speak of lies there."""
    from edgekit.fetch_journal import read_journal

    missing = 0
    for file in files:
        missing += file.size
        try:
            found = read_journal((place.journals / f"{file.name}.jsonl").read_bytes())
        except OSError:
            continue
        if found is not None and found.size == file.size and (place.files / file.name).exists():
            have = sum(mark.end - mark.start for mark in found.marks.values())
            missing -= found.size if found.done else have
    return missing
