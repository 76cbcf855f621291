"""Percentiles, shared gaps, covered time and the ceiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.report import ceiling
from edgekit.report.statistics import (
    Arrival,
    Sample,
    covered_s,
    inter_token_s,
    percentile,
    summarise,
)

TIMES = st.floats(0, 1e6, allow_nan=False)


@given(st.lists(TIMES, min_size=100, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_percentile_is_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.quantile(values, share)))


@pytest.mark.parametrize(
    ("n", "known"),
    [(0, ()), (1, (0.5,)), (2, (0.5,)), (19, (0.5,)), (20, (0.5, 0.95)), (99, (0.5, 0.95)),
     (100, (0.5, 0.95, 0.99))],
)  # fmt: skip
def test_too_few_samples_are_unknown(n: int, known: tuple[float, ...]) -> None:
    values = [float(i) for i in range(n)]
    for share in (0.5, 0.95, 0.99):
        assert (percentile(values, share) is not None) == (share in known)


@given(st.lists(st.tuples(TIMES, TIMES).map(lambda p: (min(p), max(p)))))
def test_covered_time_is_between_the_longest_and_the_sum(spans: list[tuple[float, float]]) -> None:
    covered = covered_s(spans)
    lengths = [end - start for start, end in spans]
    assert covered <= sum(lengths) * (1 + 1e-9) + 1e-6
    assert covered >= max(lengths, default=0.0) * (1 - 1e-9)


def test_covered_time_counts_an_overlap_once() -> None:
    assert covered_s([(0, 2), (1, 3), (5, 6)]) == 4
    assert covered_s([]) == 0


def sample(
    *arrivals: Arrival, output: int | None, sent: float = 0.0, error: str | None = None
) -> Sample:
    end = arrivals[-1].at_s if arrivals else sent
    return Sample(sent, end, arrivals, 10, output, 0, error)


def test_running_counts_split_each_gap_exactly() -> None:
    got = inter_token_s(
        sample(Arrival(1.0, 1, 1), Arrival(1.3, 1, 3), Arrival(1.4, 1, 1), output=5)
    )
    assert got == pytest.approx([0.1, 0.1, 0.1, 0.1])


def test_without_running_counts_the_total_is_shared_evenly() -> None:
    # Three events, six tokens: two each; two events of one read share its gap.
    got = inter_token_s(sample(Arrival(1.0, 1), Arrival(1.8, 2), output=6))
    assert got == pytest.approx([0.2, 0.2])


def test_an_unknown_total_means_one_token_an_event() -> None:
    assert inter_token_s(sample(Arrival(1.0, 1), Arrival(1.5, 1), output=None)) == [0.5]


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.integers(1, 5)), min_size=1, max_size=50))
def test_gaps_add_up_to_the_decode_time(steps: list[tuple[float, int]]) -> None:
    at, arrivals = 0.0, [Arrival(0.0, 1, 1)]
    for gap, tokens in steps:
        at += gap
        arrivals.append(Arrival(at, 1, tokens))
    got = inter_token_s(sample(*arrivals, output=1 + sum(k for _, k in steps)))
    assert sum(got) == pytest.approx(at)
    assert len(got) == sum(k for _, k in steps)


def test_speeds_of_two_overlapping_answers() -> None:
    # Both wait from 0 to 1 s, then decode 11 tokens from 1 to 2 s: 20 tokens in one second.
    one = sample(Arrival(1.0, 1), Arrival(2.0, 10), output=11)
    row = summarise(2, [one, one], wall_s=2.0)
    assert row.decode_tok_s == pytest.approx(20)
    assert row.decode_tok_s_each == pytest.approx(10)
    assert row.prefill_tok_s == pytest.approx(20)
    assert row.throughput_tok_s == pytest.approx(11)
    assert row.tpot_ms.p50 == pytest.approx(100)


def test_failed_requests_enter_only_the_error_count() -> None:
    fine = sample(Arrival(1.0, 1), Arrival(2.0, 1), output=2)
    torn = sample(Arrival(50.0, 1), output=2, error="cut")
    row = summarise(1, [fine, torn, torn], wall_s=60.0)
    assert (row.requests, row.errors, row.error_kinds) == (3, 2, (("cut", 2),))
    assert row.ttft_ms.samples == 1
    assert row.ttft_ms.p50 == 1000


def test_the_ceiling_is_bandwidth_over_bytes() -> None:
    top = ceiling(600.0, 16_800_000_000, "data sheet")
    assert top.tok_s == pytest.approx(35.714, abs=1e-3)
    assert ceiling(None, 1).tok_s is None
    assert ceiling(600.0, None).tok_s is None
