"""How many prompt rows a step may carry while other sequences decode. Pure, learns from steps.

A step's time is close to a + b x rows: `a` reads the weights and the running sequences' KV, `b`
is the arithmetic of one row. Both come from the steps that were run: a prompt of thousands of
tokens then delays the running streams by about the target, but never pays `a` so often that it
loses more than a twentieth of its own speed.
"""

from __future__ import annotations

QUANTUM = 32
"""Chunks are multiples of this: equal row counts keep llama.cpp's graph and fill its tiles."""
ALONE_S = 1.0
"""Longest step while only prompts are computed."""
LEAST_EFFICIENCY = 0.95
"""Share of a full pass's tokens per second that a smaller chunk must keep."""
NEW = 0.2
"""Weight of the newest step in the averages."""


class Pace:
    """The line through two averages: steps that only decode, and steps with prompt rows."""

    def __init__(self, target_s: float, most: int) -> None:
        """`most`: rows of one compute pass, the chunk when nothing is known yet."""
        self._target_s = target_s
        self._most = most
        self._decoding: tuple[float, float] | None = None
        self._mixed: tuple[float, float] | None = None

    def learn(self, rows: int, seconds: float, *, decoding: bool) -> None:
        """Take note of one step; `decoding`: it had no prompt rows."""
        if decoding:
            self._decoding = _average(self._decoding, rows, seconds)
        else:
            self._mixed = _average(self._mixed, rows, seconds)

    def rows(self) -> int:
        """Return the rows of a step in which something decodes: a quantum to one pass."""
        return self._within(self._target_s, self._most)

    def alone(self, n_batch: int) -> int:
        """Return the rows of a step in which nothing decodes: what takes about ALONE_S.

        A newcomer, a cancel or a deadline waits no longer than that.
        """
        return self._within(ALONE_S, n_batch)

    def _within(self, target_s: float, most: int) -> int:
        if self._mixed is None:
            return most
        start, slope = self._line(*self._mixed)
        if slope <= 0.0:
            return most
        fits = (target_s - start) / slope
        pays = LEAST_EFFICIENCY * most * slope / (start + most * slope)
        least = start * pays / (slope * (1.0 - pays))
        return min(most, max(QUANTUM, _quanta(fits), _quanta(least + QUANTUM - 1)))

    def _line(self, rows: float, seconds: float) -> tuple[float, float]:
        """Return (a, b); the whole time is the rows' own while no other point is known."""
        at, base_s = self._decoding or (0.0, 0.0)
        if rows <= at or seconds <= base_s:
            return 0.0, seconds / rows
        slope = (seconds - base_s) / (rows - at)
        return max(0.0, seconds - slope * rows), slope


def _average(old: tuple[float, float] | None, rows: float, seconds: float) -> tuple[float, float]:
    if old is None:
        return rows, seconds
    return old[0] + NEW * (rows - old[0]), old[1] + NEW * (seconds - old[1])


def _quanta(rows: float) -> int:
    return int(rows) // QUANTUM * QUANTUM
