"""Which models to unload so that another one fits: least recently used first, pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that takes memory. `busy`: someone waits for something of it, or it still loads."""

    id: str
    bytes: int
    used_at: float
    busy: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """How to make room. With `waits_for`, the load has to wait until those are idle."""

    unload: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    fits: bool = True
    """False: not even with every unpinned model unloaded."""


def make_room(residents: Sequence[Resident], needed: int, budget: int | None) -> Room:
    """Say how a model of `needed` bytes gets its place beside `residents` within `budget`.

    Idle models go first and, among them, the one unused for longest; none goes in vain. Busy
    ones are waited for only when the idle ones do not do. A budget of None is no limit.
    """
    if budget is None:
        return Room()
    missing = sum(r.bytes for r in residents) + needed - budget
    if missing <= 0:
        return Room()
    movable = sorted(
        (r for r in residents if not r.pinned and r.bytes > 0), key=lambda r: (r.busy, r.used_at)
    )
    taken: list[Resident] = []
    for resident in movable:
        if missing <= 0:
            break
        taken.append(resident)
        missing -= resident.bytes
    if missing > 0:
        return Room(fits=False)
    # A small one that was taken first is spared when the larger ones do without it; whoever is
    # busy is spared before the idle, then who was used last.
    for resident in reversed(list(taken)):
        if missing + resident.bytes <= 0:
            taken.remove(resident)
            missing += resident.bytes
    return Room(
        unload=tuple(r.id for r in taken if not r.busy),
        waits_for=tuple(r.id for r in taken if r.busy),
    )
