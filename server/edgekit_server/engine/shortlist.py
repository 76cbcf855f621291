"""The largest logits of a row, exact, several times faster than sorting for them.

The row is cut into SPLIT parts laid over one another, so that column j holds logits j, j + w,
j + 2w, ... The k-th largest of the columns' peaks is a bar that at least k logits reach, and
only the columns that reach it need looking at: about k of thousands. The one pass over the
whole row, taking the peaks, runs as fast as memory delivers it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]

SPLIT = 32
"""Parts of a row. Fewer: more columns to sort; more: more logits per column to look at."""
COLUMNS_PER_TOP = 4
"""Columns needed per logit asked for, lest they share columns and the bar drop low."""
_LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True, slots=True)
class Shortlist:
    """A row's largest finite logits, in falling order; `ids` and `logits` of equal length."""

    ids: NDArray[np.int64]
    logits: Row
    broken: bool
    """The row's maximum is no finite number: NaN in it, an infinity, or nothing allowed."""
    tied: bool
    """Equal logits among them or at the cut: which come first is the sorter's own choice."""


def suits(n_vocab: int, k: int) -> bool:
    """Whether rows of this width are long enough for a shortlist of k."""
    return n_vocab // SPLIT >= max(COLUMNS_PER_TOP * k, SPLIT)


def shortlist(row: Row, k: int) -> Shortlist:
    """Return the k largest logits of a row; `suits` must hold.

    Minus infinities are left out, so there may be fewer; of a broken or tied row there may be
    any number.
    """
    width = len(row) // SPLIT
    whole = SPLIT * width
    grid = row[:whole].reshape(SPLIT, width)
    rest = row[whole:]  # shorter than SPLIT
    peaks = grid.max(axis=0)
    if len(rest):
        np.maximum(peaks[: len(rest)], rest, out=peaks[: len(rest)])
    highest = np.partition(peaks, width - k)[width - k :]
    bar = max(highest[0], _LOWEST)
    hot = (peaks >= bar).nonzero()[0]
    broken = not math.isfinite(highest.max())
    if broken or len(hot) > k:  # too many only by columns whose peaks equal the bar
        return Shortlist(hot[:0], row[:0], broken, tied=not broken)
    values = grid[:, hot].ravel()
    high = (values >= bar).nonzero()[0]
    logits = values[high]
    part, column = np.divmod(high, len(hot))
    ids = part * width + hot[column]
    if len(rest) and len(more := (rest >= bar).nonzero()[0]):
        ids = np.concatenate((ids, whole + more))
        logits = np.concatenate((logits, rest[more]))
    order = (-logits).argsort()
    ids, logits = ids[order], logits[order]
    near = logits[: k + 1]
    tied = bool((near[1:] == near[:-1]).any())
    return Shortlist(ids[:k], logits[:k], broken, tied)
