"""What a step takes on this machine, by its number of rows. Pure: learns from the steps run.

A level that follows the context's length and the machine's load, times a shape that belongs to
the kernels. Both are medians of a few recent steps: other work on the machine comes in bursts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

GUESS = 0.2
"""Cost of one more row, in steps of one, before anything is measured."""
HOPE = 0.7
"""What rows beyond those measured are taken to cost, of what the measured ones do."""
KEPT, LEVELS = 15, 9
"""Steps that a median is taken of: of one number of rows, of any."""
LEAST = 3
"""Steps that make a measurement; the first may build a graph."""
SURE = 6
"""Below this many steps of a size, it is not believed to cost less than others tell."""
STALE, STALE_FEW = 1000, 100
"""Steps after which a measurement that was not repeated is dropped; of few steps, sooner: one
bad moment of the machine must not keep a size from being tried again."""
REFRESH = 16


class StepCosts:
    """Seconds per step as level x shape[rows]. Only ratios of the shape mean anything."""

    def __init__(self) -> None:
        self._shape: dict[int, float] = {}
        self._ratios: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}
        """Step in which a number of rows was last seen."""
        self._levels: deque[float] = deque(maxlen=LEVELS)
        self._level = 0.0
        self._n = 0
        self._added: dict[int, tuple[int, list[float]]] = {}

    def learn(self, rows: int, seconds: float) -> None:
        """Take note of a step of this many rows, none of them a prompt's."""
        self._n += 1
        if not self._shape:
            self._level = seconds
        expected = self.of(rows)
        if rows not in self._ratios:
            self._ratios[rows] = deque(maxlen=KEPT)
            self._added.clear()
        ratios = self._ratios[rows]
        # A hiccup of the machine is no cost of rows.
        ratios.append(min(seconds / self._level, 3.0 * expected))
        shape = _middle(ratios)
        self._shape[rows] = max(shape, expected) if len(ratios) < SURE else shape
        self._last[rows] = self._n
        self._levels.append(seconds / self._shape[rows])
        self._level = _middle(self._levels)
        if self._n % 64 == 0:
            self._drop_stale()

    def of(self, rows: int) -> float:
        """Return the cost of a step with this many rows, relative to others of this table."""
        shape = self._shape
        if rows in shape:
            return shape[rows]
        below = max((n for n in shape if n < rows), default=0)
        above = min((n for n in shape if n > rows), default=0)
        if not below and not above:
            return 1.0 + GUESS * (rows - 1)
        if not below:
            return shape[above] / (1.0 + GUESS * (above - rows))
        if not above:
            return shape[below] * (1.0 + self._slope(below) * (rows - below))
        share = (rows - below) / (above - below)
        return shape[below] + share * (shape[above] - shape[below])

    def _slope(self, last: int) -> float:
        """Relative cost of a row beyond the `last` measured: a little hopeful, to be tried."""
        first = min(self._shape)
        if first == last:
            return GUESS
        rise = (self._shape[last] - self._shape[first]) / (last - first)
        return HOPE * max(0.0, rise) / self._shape[last]

    def knows(self, rows: int) -> bool:
        """Whether this number of rows was measured: what drafts cost is told from that."""
        return len(self._ratios.get(rows, ())) >= LEAST

    def tried(self, rows: int) -> bool:
        """Whether any step of more rows was measured; without one, what they cost is a guess."""
        return any(n > rows for n in self._shape)

    def seconds(self, rows: int) -> float:
        """Return what a step of this many rows takes; 0.0 while nothing is measured."""
        return self._level * self.of(rows) if self._shape else 0.0

    def added(self, base: int, most: int) -> list[float]:
        """Return what 0..most more rows add to a step of `base`, in steps of `base`.

        Never falling: a size that seems to cost less than a smaller one was measured badly.
        """
        n, known = self._added.get(base, (-1, []))
        if n < 0 or self._n - n > REFRESH or len(known) <= most:
            one, highest, known = self.of(base), 0.0, []
            for k in range(most + 1):
                highest = max(highest, self.of(base + k) / one - 1.0)
                known.append(highest)
            self._added[base] = (self._n, known)
        return known

    def _drop_stale(self) -> None:
        least = min(self._shape)
        for rows, last in list(self._last.items()):
            limit = STALE if len(self._ratios[rows]) >= SURE else STALE_FEW
            if self._n - last > limit and rows != least:
                del self._shape[rows], self._ratios[rows], self._last[rows]
                self._added.clear()


def _middle(values: Iterable[float]) -> float:
    """The median, the upper one of two."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
