"""Log-probabilities of one row of logits, as llama-server reports them: of the raw row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.wire import TopToken

FLOOR = -9999.0
"""Stands for minus infinity; JSON has no infinity (OpenAI sends this figure)."""


class LogSoftmax:
    """A copy of the row, taken before biases, masks and samplers change it."""

    def __init__(self, row: native.Logits, n_top: int) -> None:
        """`n_top`: how many of the most likely tokens `top` returns."""
        self._row = row.copy()
        peak = float(self._row.max())
        self._total = peak + math.log(float(np.exp(self._row - peak).sum()))
        self._n_top = min(n_top, len(row))

    def entry(self, token: int, pieces: Sequence[bytes]) -> TopToken:
        """Return one token with its natural-log probability."""
        logprob = float(self._row[token]) - self._total
        return TopToken(token, pieces[token], max(logprob, FLOOR))

    def top(self, pieces: Sequence[bytes]) -> list[TopToken]:
        """Most likely tokens, best first; equal ones by id."""
        if self._n_top <= 0:
            return []
        best = np.argpartition(self._row, -self._n_top)[-self._n_top :]
        ordered = best[np.lexsort((best, -self._row[best]))]
        return [self.entry(int(token), pieces) for token in ordered]
