"""Whether a new prompt starts at once or waits for one that computes the same tokens. Pure.

Many agents send one system prompt at the same moment. Whoever comes first computes it; the
others wait until the common part is in memory, and then share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_GAIN = 32
"""Tokens that waiting must save."""
PATIENCE = 8
"""Steps without progress of the owner after which a waiting prompt starts by itself."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A running request, seen from a waiting one."""

    key: int
    common: int
    """Leading tokens of the waiting prompt that this request has or is going to compute."""
    computed: int
    """Tokens it has in memory."""
    stalled: int = 0
    """Steps since it last computed any."""


def awaited(n_cached: int, owners: Sequence[Owner], *, min_gain: int = MIN_GAIN) -> Owner | None:
    """Return the request to wait for, or None to start now.

    `n_cached`: tokens of the prompt that can be had now. Computing the common part a second
    time is never faster than waiting, since both would share the same steps; so only the gain
    counts, and that the owner gets on. An owner past the common part is in `n_cached`.
    """
    useful = [
        owner
        for owner in owners
        if owner.computed < owner.common
        and owner.common - n_cached >= min_gain
        and owner.stalled < PATIENCE
    ]
    return max(useful, key=lambda owner: (owner.common, owner.computed, -owner.key), default=None)
