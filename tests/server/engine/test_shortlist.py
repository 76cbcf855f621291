"""The largest logits of a row against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.engine.shortlist import SPLIT, Row, Shortlist, shortlist, suits


def largest(row: Row, k: int) -> Row:
    falling: Row = np.sort(row[np.isfinite(row)])[::-1][:k]
    return falling


def check(row: Row, found: Shortlist, k: int) -> None:
    np.testing.assert_array_equal(found.logits, largest(row, k))
    np.testing.assert_array_equal(row[found.ids], found.logits)
    assert not found.broken


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    k=st.integers(1, 50),
    more=st.integers(0, 3 * SPLIT),
    allowed=st.sampled_from([1.0, 0.1, 0.002]),
)
def test_against_a_sort(seed: int, n: int, k: int, more: int, allowed: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, SPLIT * max(4 * k, SPLIT) + more), np.float32)
    rows[rng.random(rows.shape) > allowed] = -np.inf
    rows[:, -1] = 9.0  # there is always something, in the part that is no full column too
    assert suits(rows.shape[1], k)
    for row in rows:
        found = shortlist(row, k)
        if not found.tied:
            check(row, found, k)


def test_ties_are_told() -> None:
    k, width = 8, 32 * SPLIT
    rows = np.arange(6 * width, dtype=np.float32).reshape(6, width)
    rows[1, -3] = rows[1, -2]  # among the eight largest
    rows[2, -9] = rows[2, -8]  # the eighth and the ninth
    rows[3, -10] = rows[3, -9]  # below the cut: no matter
    rows[4] = 1.0
    rows[5, :] = -np.inf
    rows[5, 4] = 0.0
    found = [shortlist(row, k) for row in rows]
    assert [one.tied for one in found] == [False, True, True, False, True, False]
    check(rows[0], found[0], k)
    check(rows[3], found[3], k)
    assert found[5].ids.tolist() == [4]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 500, -1])
def test_broken_rows_are_told_and_spoil_no_other(bad: float, where: int) -> None:
    rows = np.random.default_rng(1).standard_normal((3, 32 * SPLIT + 5), np.float32)
    rows[1, where] = bad
    found = [shortlist(row, 8) for row in rows]
    assert [one.broken for one in found] == [False, True, False]
    check(rows[0], found[0], 8)
    check(rows[2], found[2], 8)


def test_nothing_allowed_is_broken() -> None:
    found = shortlist(np.full(32 * SPLIT, -np.inf, np.float32), 8)
    assert found.broken
