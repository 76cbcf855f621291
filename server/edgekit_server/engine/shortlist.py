"""The largest logits of many rows at once, exact, several times faster than sorting for them.

Each row is cut into SPLIT parts laid over one another, so that column j holds logits j, j + w,
j + 2w, ... The k-th largest of the columns' peaks is a bar that at least k logits reach, and
only the columns that reach it need looking at: about k of thousands. The one pass over the
whole row, taking the peaks, runs as fast as memory delivers it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

SPLIT = 32
"""Parts of a row. Fewer: more columns to sort; more: more logits per column to look at."""
COLUMNS_PER_TOP = 4
"""Columns needed per logit asked for, lest they share columns and the bar drop low."""
_LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True, slots=True)
class Shortlist:
    """A row's largest finite logits, in falling order; `ids` and `logits` of equal length."""

    ids: NDArray[np.int64]
    logits: Rows
    broken: bool
    """The row's maximum is no finite number: NaN in it, an infinity, or nothing allowed."""
    tied: bool
    """Equal logits among them or at the cut: which come first is the sorter's own choice."""


def suits(n_vocab: int, k: int) -> bool:
    """Whether rows of this width are long enough for a shortlist of k."""
    return n_vocab // SPLIT >= max(COLUMNS_PER_TOP * k, SPLIT)


def shortlists(rows: Rows, k: int) -> list[Shortlist]:
    """Return the k largest logits of each row of a (n, n_vocab) view; `suits` must hold.

    Minus infinities are left out, so there may be fewer; of a broken or tied row there may be
    any number.
    """
    n, n_vocab = rows.shape
    width = n_vocab // SPLIT
    whole = SPLIT * width
    grid = rows[:, :whole].reshape(n, SPLIT, width)
    rest = rows[:, whole:]  # shorter than SPLIT
    peaks = grid.max(axis=1)
    np.maximum(peaks[:, : n_vocab - whole], rest, out=peaks[:, : n_vocab - whole])
    broken = ~np.isfinite(peaks.max(axis=1))
    bars = np.maximum(np.partition(peaks, width - k, axis=1)[:, width - k], _LOWEST)[:, None]
    hot = np.flatnonzero(peaks >= bars)  # over all rows: nonzero() of two axes is much slower
    at, column = hot // width, hot % width
    crowded = np.bincount(at, minlength=n) > k  # only by columns whose peaks equal the bar
    if crowded.any():
        at, column = at[~crowded[at]], column[~crowded[at]]
    values = grid[at, :, column]
    high = np.flatnonzero(values >= bars[at])
    pair, part = high // SPLIT, high % SPLIT
    owner, ids, logits = at[pair], part * width + column[pair], values.ravel()[high]
    if whole < n_vocab:
        rest_at, rest_column = np.nonzero(rest >= bars)
        owner = np.concatenate((owner, rest_at))
        ids = np.concatenate((ids, whole + rest_column))
        logits = np.concatenate((logits, rest[rest_at, rest_column]))
    order = np.lexsort((-logits, owner))
    owner, ids, logits = owner[order], ids[order], logits[order]
    starts = np.searchsorted(owner, np.arange(n + 1)).tolist()
    same = np.flatnonzero((logits[1:] == logits[:-1]) & (owner[1:] == owner[:-1])).tolist()
    lists: list[Shortlist] = []
    for i in range(n):
        start, end = starts[i], min(starts[i] + k, starts[i + 1])
        tied = bool(crowded[i]) or any(start <= j < end for j in same)
        lists.append(Shortlist(ids[start:end], logits[start:end], bool(broken[i]), tied))
    return lists
