"""Which resident a new prompt takes its beginning from, and how. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit_server.engine.checkpoints import Checkpoint, Kind, keepable
from edgekit_server.engine.resident import Resident

IN_PLACE_SHARE = 0.5
"""A resident is taken over if at least this share of it stays; otherwise its prefix is copied."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a prompt's beginning can be had: `length` tokens of `donor`."""

    donor: Resident | None = None
    length: int = 0
    checkpoint: Checkpoint | None = None
    copied: bool = False
    """False: the donor's sequence itself goes on."""


def best(
    residents: Sequence[Resident],
    prompt: array[int],
    kind: Kind,
    start: Callable[[int], int],
    copy_min: int,
) -> tuple[Source, int]:
    """Return the longest beginning to be had, among equals from an idle resident, and the
    longest in common with any, had or not.

    `start(seq)`: first position still in a sequence's window.
    """
    found, longest = Source(), 0
    for resident in residents:
        common = resident.common(prompt) if resident.tokens else 0
        longest = max(longest, common)
        if common < max(1, found.length):
            continue
        first = 0 if kind.exact else start(resident.seq)
        source = source_of(resident, common, kind, first, copy_min)
        if source.length > found.length or (
            source.length == found.length > 0 and _is_idle(source) and not _is_idle(found)
        ):
            found = source
    return found, longest


def source_of(resident: Resident, common: int, kind: Kind, start: int, copy_min: int) -> Source:
    """Return what one resident can give of the `common` tokens it shares with a prompt."""
    length = len(resident.tokens)
    n, checkpoint = keepable(kind, common, length, start, resident.checkpoints)
    in_place = Source(resident, n, checkpoint) if resident.idle else Source()
    copy = Source()
    if kind.exact:
        if kind.unified or n >= copy_min:
            copy = Source(resident, n, copied=True)
    elif kind.unified:
        # The window or state that is copied along belongs to the donor's last token: only a
        # checkpoint puts the right one in its place.
        at = [c for c in resident.checkpoints if c.n_tokens <= common]
        if at:
            latest = max(at, key=lambda c: c.n_tokens)
            copy = Source(resident, latest.n_tokens, latest, copied=True)
    if in_place.length > 0 and (copy.length == 0 or n >= length * IN_PLACE_SHARE):
        return in_place
    return copy


def _is_idle(source: Source) -> bool:
    return source.donor is not None and source.donor.idle
