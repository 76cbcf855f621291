"""How many prompt rows a step may carry while other sequences decode. Pure, learns from steps.

A step's time is close to a + b x rows: `a` reads the weights once, `b` is the arithmetic of one
row. Both are learned from the steps that were run, so that a prompt of thousands of tokens delays
the running streams by about the target and no more, on a GPU as on a slow CPU.
"""

from __future__ import annotations

QUANTUM = 32
"""Chunks are multiples of this: equal row counts keep llama.cpp's graph and fill its tiles."""
ALONE_S = 1.0
"""Longest step while only prompts are computed."""
FORGET = 0.9
"""Weight that earlier steps keep at each new one."""


class Pace:
    """Running least-squares line through (rows, seconds) of recent steps, older ones fading."""

    def __init__(self, target_s: float, most: int) -> None:
        """`most`: rows of one compute pass, the chunk when nothing is known yet."""
        self._target_s = target_s
        self._most = most
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """Take note of one step with prompt rows in it."""
        self._n = self._n * FORGET + 1.0
        self._x = self._x * FORGET + rows
        self._y = self._y * FORGET + seconds
        self._xx = self._xx * FORGET + rows * rows
        self._xy = self._xy * FORGET + rows * seconds

    def rows(self) -> int:
        """Return the rows that take about the target, at least one quantum, at most one pass."""
        return self._within(self._target_s, self._most)

    def alone(self, n_batch: int) -> int:
        """Return the rows of a step in which nothing decodes: what takes about ALONE_S.

        A newcomer, a cancel or a deadline waits no longer than that.
        """
        return self._within(ALONE_S, n_batch)

    def _within(self, target_s: float, most: int) -> int:
        if self._n == 0.0:
            return most
        spread = self._n * self._xx - self._x * self._x
        slope = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-6 else 0.0
        if slope <= 0.0:  # one size so far, or noise: take the whole time as the rows' own
            slope, start = self._y / self._x, 0.0
        else:
            start = max(0.0, (self._y - slope * self._x) / self._n)
        fits = int((target_s - start) / slope) if slope > 0.0 else most
        return min(most, max(QUANTUM, fits // QUANTUM * QUANTUM))
