"""Two models' next-token distributions compared: the arithmetic, on plain arrays.

The unquantized model's log-probabilities are kept in 16 bits: a row's largest 24 nats in 65,535
steps of 0.0004, below that "never". Rows are scaled to a sum of one again when they are read.
Rounding adds 1e-7 to the divergence of a model from itself, and moves any position's by less
than a step times its own spread; over a thousand positions that is about 1e-5.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
    Reals = npt.NDArray[np.float64]
    Words = npt.NDArray[np.uint16]

DEPTH = 24.0
"""Nats below the likeliest token that are kept; what is lower weighs 5e-6 at 131,072 tokens."""
STEP = DEPTH / 65535
ROWS_AT_ONCE = 16


def pack(logits: Logits) -> Words:
    """Return rows of logits as 16-bit log-probabilities: 65,535 for the likeliest, 0 for never."""
    top = logits.max(axis=1, keepdims=True)
    steps = np.rint((logits - top) / np.float32(STEP)) + 65535
    return np.asarray(np.clip(steps, 0, 65535), np.uint16)


def unpack(words: Words) -> Reals:
    """Return log-probabilities, -inf for never, each row summing to one."""
    rows = (words.astype(np.float64) - 65535) * STEP
    rows[words == 0] = -np.inf
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


def log_softmax(logits: Logits) -> Reals:
    """Return log-probabilities of rows of logits, in float64."""
    rows = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return np.asarray(rows)


@dataclass(frozen=True, slots=True)
class Rows:
    """Each position: divergence in nats, both losses, and whether the first choice is equal."""

    kl: Reals
    loss: Reals
    base_loss: Reals
    same_top: npt.NDArray[np.bool_]


def compare_rows(words: Words, logits: Logits, following: npt.NDArray[np.int64]) -> Rows:
    """Compare rows of the base with rows of a model; `following` is the token that really came."""
    parts = [
        _compare(words[at : at + ROWS_AT_ONCE], logits[at : at + ROWS_AT_ONCE],
                 following[at : at + ROWS_AT_ONCE])
        for at in range(0, len(words), ROWS_AT_ONCE)
    ]  # fmt: skip
    return joined(parts)


def _compare(words: Words, logits: Logits, following: npt.NDArray[np.int64]) -> Rows:
    base, other = unpack(words), log_softmax(logits)
    seen = np.isfinite(base)
    weight = np.where(seen, np.exp(base), 0.0)
    kl = (weight * np.where(seen, base - other, 0.0)).sum(axis=1)
    at = np.arange(len(words))
    # A token that the base ruled out counts as one step below what is kept.
    base_loss = -np.maximum(base[at, following], base.max(axis=1) - DEPTH)
    # Two tokens may be one word apart or none: either is the base's first choice then.
    same = words[at, logits.argmax(axis=1)] == words.max(axis=1)
    return Rows(kl, -other[at, following], base_loss, same)


def joined(parts: list[Rows]) -> Rows:
    """Put rows of several windows together."""
    return Rows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


@dataclass(frozen=True, slots=True)
class Divergence:
    """A model against its base over a text. KL in nats; `same_top` is a share of the positions.

    `kl_error` and `ratio_error` are standard errors. Perplexity is e to the mean loss.
    """

    positions: int
    kl: float
    kl_error: float
    kl_p999: float
    kl_max: float
    same_top: float
    perplexity: float
    base_perplexity: float
    ratio: float
    ratio_error: float

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


def summarize(rows: Rows) -> Divergence:
    """Return the figures of all positions together. A figure that is not finite stays so."""
    n = len(rows.kl)
    change = rows.loss - rows.base_loss
    ratio = _exp(float(change.mean()))
    return Divergence(
        positions=n,
        kl=float(rows.kl.mean()),
        kl_error=_standard_error(rows.kl),
        kl_p999=float(np.quantile(rows.kl, 0.999)),
        kl_max=float(rows.kl.max()),
        same_top=float(rows.same_top.mean()),
        perplexity=_exp(float(rows.loss.mean())),
        base_perplexity=_exp(float(rows.base_loss.mean())),
        ratio=ratio,
        ratio_error=ratio * _standard_error(change),
    )


def _standard_error(values: Reals) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)
