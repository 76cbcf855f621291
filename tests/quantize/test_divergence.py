"""The arithmetic of comparing two models, against a direct account of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_quantize.divergence import compare_rows, log_softmax, pack, summarize, unpack


def logits(seed: int, rows: int, vocab: int, spread: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (rows, vocab)).astype(np.float32)


def exactly(base: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence in nats, from the definition."""
    total = 0.0
    for p, q in zip(base.astype(np.float64), other.astype(np.float64), strict=True):
        p, q = p - np.logaddexp.reduce(p), q - np.logaddexp.reduce(q)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(base)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    vocab=st.integers(2, 300),
    spread=st.floats(0.0, 6.0),
    noise=st.floats(0.0, 3.0),
)
def test_divergence_is_the_definition(
    seed: int, rows: int, vocab: int, spread: float, noise: float
) -> None:
    base = logits(seed, rows, vocab, spread)
    other = base + logits(seed + 1, rows, vocab, noise)
    following = np.random.default_rng(seed).integers(0, vocab, rows)
    found = summarize(compare_rows(pack(base), other, following))
    assert found.kl == pytest.approx(exactly(base, other), abs=2e-4, rel=2e-4)
    want = -log_softmax(other)[np.arange(rows), following].mean()
    assert found.perplexity == pytest.approx(math.exp(want))
    assert found.kl_max >= found.kl_p999 >= 0 or found.kl_max == pytest.approx(0, abs=1e-6)
    assert found.positions == rows


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.0, 8.0))
def test_a_model_does_not_differ_from_itself(seed: int, spread: float) -> None:
    base = logits(seed, 20, 200, spread)
    found = summarize(compare_rows(pack(base), base, base.argmax(axis=1)))
    assert abs(found.kl) < 1e-6
    assert found.same_top == 1.0
    assert found.ratio == pytest.approx(1, abs=1e-3)


def test_sixteen_bits_keep_probabilities() -> None:
    base = logits(3, 8, 5000, 4.0)
    kept = unpack(pack(base))
    np.testing.assert_allclose(np.exp(kept).sum(axis=1), 1.0)
    seen = np.isfinite(kept)
    assert np.abs(kept[seen] - log_softmax(base)[seen]).max() < 3e-4


def test_what_is_far_below_the_likeliest_is_never() -> None:
    base = np.array([[0.0, -5.0, -40.0]], np.float32)
    assert unpack(pack(base))[0, 2] == -np.inf
    other = np.array([[0.0, -5.0, 10.0]], np.float32)
    found = summarize(compare_rows(pack(base), other, np.array([2])))
    assert math.isfinite(found.kl)
    assert found.base_perplexity == pytest.approx(math.exp(24.0067), rel=1e-3)


def test_the_first_choice_of_equals() -> None:
    base = np.array([[1.0, 1.0, 0.0]], np.float32)
    for favourite in (0, 1):
        other = np.zeros((1, 3), np.float32)
        other[0, favourite] = 1
        assert summarize(compare_rows(pack(base), other, np.array([0]))).same_top == 1.0
    last = np.array([[0.0, 0.0, 1.0]], np.float32)
    assert summarize(compare_rows(pack(base), last, np.array([0]))).same_top == 0.0


def test_a_model_that_computes_no_numbers_is_no_number() -> None:
    base = logits(1, 4, 10, 1.0)
    found = summarize(compare_rows(pack(base), np.full_like(base, np.nan), np.zeros(4, np.int64)))
    assert math.isnan(found.kl)
    assert math.isnan(found.ratio)
