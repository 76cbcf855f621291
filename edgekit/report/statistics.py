"""From what one client saw to one row of the report. Pure: no clock, no network.

Times in samples are seconds on one monotonic clock; rows hold milliseconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgekit.report.record import Ceiling, LatencyRow, Percentiles


@dataclass(frozen=True, slots=True)
class Arrival:
    """Tokens that reached the client in one read of the socket.

    `tokens` is the server's own count, or None when it gave only a total; `events` is how many
    stream events with an answer in them the read held.
    """

    at_s: float
    events: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it; `error` is None when it succeeded."""

    sent_s: float
    end_s: float
    arrivals: tuple[Arrival, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = None


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the `share` quantile (0.5, 0.95, 0.99) of `values`, or None if there are too few.

    Linear interpolation between the two closest ranks: type 7 of Hyndman and Fan, "Sample
    quantiles in statistical packages", The American Statistician 50 (1996), also numpy's
    default. Too few means fewer than 1 / (1 - share) values, when not one sample is expected
    beyond the quantile: 2 for p50, 20 for p95, 100 for p99. One value is its own median.
    """
    n = len(values)
    # Rounded, because 1 / (1 - 0.95) is a hair above 20 in binary.
    if n == 0 or (n < round(1 / (1 - share)) and not (n == 1 and share == 0.5)):
        return None
    ordered = sorted(values)
    rank = (n - 1) * share
    low = math.floor(rank)
    high = min(low + 1, n - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def percentiles(values: Sequence[float]) -> Percentiles:
    """Return p50, p95 and p99 of `values` in milliseconds, rounded to a microsecond."""
    p50, p95, p99 = (_rounded(percentile(values, share)) for share in (0.5, 0.95, 0.99))
    return Percentiles(p50, p95, p99, len(values))


def inter_token_s(sample: Sample) -> list[float]:
    """Return the gaps between successive tokens of one answer, in seconds.

    When k tokens arrive together, the gap before them is shared: k gaps of gap / k each. k is
    the server's running count where the stream carries one. Otherwise every event is taken to
    hold output_tokens / events tokens, the same for the whole answer.
    """
    arrivals = sample.arrivals
    events = sum(arrival.events for arrival in arrivals)
    per_event = sample.output_tokens / events if sample.output_tokens and events else 1.0
    gaps: list[float] = []
    for before, now in pairwise(arrivals):
        gap = now.at_s - before.at_s
        if now.tokens is not None:
            gaps += [gap / now.tokens] * now.tokens if now.tokens else []
        else:
            gaps += [gap / (now.events * per_event)] * now.events
    return gaps


def covered_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of `intervals`: the time when at least one was open."""
    total, reach = 0.0, -math.inf
    for start, end in sorted(intervals):
        if end > reach:
            total += end - max(start, reach)
            reach = end
    return total


def ceiling(
    bandwidth_gb_s: float | None, bytes_per_step: int | None, basis: str | None = None
) -> Ceiling:
    """Return the fastest decode that memory traffic allows for one user.

    tokens/s = bandwidth (10^9 bytes/s) / bytes read per decode step: each step reads every
    active weight and the KV of the sequence once. `tok_s` is None when either is unknown.
    """
    tok_s = None
    if bandwidth_gb_s is not None and bytes_per_step:
        tok_s = bandwidth_gb_s * 1e9 / bytes_per_step
    return Ceiling(bandwidth_gb_s, bytes_per_step, tok_s, basis)


def summarise(users: int, samples: Sequence[Sample], wall_s: float) -> LatencyRow:
    """Fold the samples of one load level into its row; failed requests only enter `errors`.

    decode_tok_s: tokens after each first one / time in which at least one answer was between
    its first and last token. prefill_tok_s: prompt tokens not taken from the cache / time in
    which at least one request was waiting for its first token; it includes queueing and the
    first decode step, so it is a lower bound. throughput_tok_s: all output tokens / wall_s.
    decode_tok_s_each: 1000 / median TPOT.
    """
    good = [sample for sample in samples if sample.error is None and sample.arrivals]
    kinds = Counter(sample.error for sample in samples if sample.error is not None)
    tpot = [
        1e3 * (s.arrivals[-1].at_s - s.arrivals[0].at_s) / (s.output_tokens - 1)
        for s in good
        if s.output_tokens is not None and s.output_tokens > 1
    ]
    each = percentiles(tpot)
    prompt = _known(s.prompt_tokens for s in good)
    output = _known(s.output_tokens for s in good)
    cached = _known(s.cached_tokens for s in good)
    complete = bool(good) and len(output) == len(good)
    decoding = covered_s((s.arrivals[0].at_s, s.arrivals[-1].at_s) for s in good)
    waiting = covered_s((s.sent_s, s.arrivals[0].at_s) for s in good)
    fresh = sum(prompt) - sum(cached)
    return LatencyRow(
        users=users,
        requests=len(samples),
        errors=kinds.total(),
        prompt_tokens=_middle(prompt),
        prompt_tokens_min=min(prompt, default=None),
        prompt_tokens_max=max(prompt, default=None),
        output_tokens=_middle(output),
        output_tokens_min=min(output, default=None),
        output_tokens_max=max(output, default=None),
        cached_tokens_max=max(cached, default=None),
        ttft_ms=percentiles([1e3 * (s.arrivals[0].at_s - s.sent_s) for s in good]),
        itl_ms=percentiles([1e3 * gap for s in good for gap in inter_token_s(s)]),
        tpot_ms=each,
        e2e_ms=percentiles([1e3 * (s.end_s - s.sent_s) for s in good]),
        decode_tok_s=_rate(sum(output) - len(output), decoding) if complete else None,
        decode_tok_s_each=_rounded(1e3 / each.p50) if each.p50 else None,
        prefill_tok_s=_rate(fresh, waiting) if good and len(prompt) == len(good) else None,
        throughput_tok_s=_rate(sum(output), wall_s) if complete else None,
        wall_s=round(wall_s, 3),
        error_kinds=tuple(sorted(kinds.items())),
    )


def _known(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _middle(values: list[int]) -> int | None:
    """A length that was really seen: the lower median, never an average of two."""
    return sorted(values)[(len(values) - 1) // 2] if values else None


def _rate(tokens: int, seconds: float) -> float | None:
    return _rounded(tokens / seconds) if tokens > 0 and seconds > 0 else None


def _rounded(value: float | None) -> float | None:
    """Three decimals: finer than any clock here, and JSON that a person can read."""
    return None if value is None else round(value, 3)
