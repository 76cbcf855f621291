"""Who is unloaded for whom: arithmetic only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.room import Resident, Room, make_room


def resident(text: str) -> Resident:
    """`a30@5`: model a, 30 bytes, used at 5; with `*` busy, with `!` pinned."""
    name, _, rest = text[0], None, text[1:].rstrip("*!")
    size, _, used = rest.partition("@")
    return Resident(name, int(size), float(used or 0), busy="*" in text, pinned="!" in text)


@pytest.mark.parametrize(
    ("residents", "needed", "budget", "room"),
    [
        ("", 10, 10, Room()),
        ("a10 b10", 10, 30, Room()),
        ("a10 b10", 10, None, Room()),
        # Least recently used first.
        ("a10@2 b10@1", 10, 20, Room(unload=("b",))),
        ("a10@1 b10@2", 10, 20, Room(unload=("a",))),
        ("a10@1 b10@2 c10@3", 20, 30, Room(unload=("a", "b"))),
        # What was first in line for it is spared when it would be in vain.
        ("a1@1 b10@2", 10, 11, Room(unload=("b",))),
        # Busy ones are waited for, the idle ones not being enough.
        ("a10@1* b10@2", 10, 20, Room(unload=("b",))),
        ("a10@1* b10@2", 15, 20, Room(unload=("b",), waits_for=("a",))),
        ("a10@1* b1@2", 10, 11, Room(waits_for=("a",))),
        ("a10@2* b10@1*", 10, 20, Room(waits_for=("b",))),
        # Pinned ones stay.
        ("a10@1! b10@2", 10, 20, Room(unload=("b",))),
        ("a10@1!", 15, 20, Room(fits=False)),
        ("a10@1!* b5@1", 11, 20, Room(fits=False)),
        # What takes nothing, as far as is known, makes no room.
        ("a0@1 b10@2", 10, 10, Room(unload=("b",))),
    ],
)
def test_cases(residents: str, needed: int, budget: int | None, room: Room) -> None:
    assert make_room([resident(r) for r in residents.split()], needed, budget) == room


RESIDENTS = st.lists(
    st.builds(
        Resident,
        id=st.uuids().map(str),
        bytes=st.integers(0, 50),
        used_at=st.floats(0, 100),
        busy=st.booleans(),
        pinned=st.booleans(),
    ),
    max_size=8,
)


@given(RESIDENTS, st.integers(0, 120), st.integers(0, 200))
def test_it_is_enough_and_nothing_goes_in_vain(
    residents: list[Resident], needed: int, budget: int
) -> None:
    room = make_room(residents, needed, budget)
    going = {*room.unload, *room.waits_for}
    kept = [r for r in residents if r.id not in going]
    pinned = sum(r.bytes for r in residents if r.pinned)

    def fits(stay: list[Resident]) -> bool:
        return sum(r.bytes for r in stay) + needed <= budget

    assert not any(r.pinned for r in residents if r.id in going)
    assert all(r.busy == (r.id in room.waits_for) for r in residents if r.id in going)
    assert room.fits == (pinned + needed <= budget or fits(residents))
    if not room.fits:
        assert not going
        return
    assert fits(kept)
    for spared in (r for r in residents if r.id in going):
        assert not fits([*kept, spared])
    if room.waits_for:
        idle = [r for r in residents if not r.busy and not r.pinned]
        assert not fits([r for r in residents if r not in idle])
