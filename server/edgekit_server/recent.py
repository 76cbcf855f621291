"""How fast the server has been lately: for people who look now. Prometheus has the long view."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 600.0
"""One person alone sends few requests a minute; older ones say little of the load of now."""
SPEED_S = 5
"""Whole seconds over which tokens per second are counted."""
MAX_SAMPLES = 4096
MIN_FOR_P95 = 20
"""Fewer samples hold no twentieth part."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile in milliseconds; None where the samples are too few to say."""

    p50: float | None
    p95: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Figures:
    ttft_ms: Spread
    itl_ms: Spread
    output_tok_s: float


class Recent:
    """Keeps the newest samples, at most MAX_SAMPLES of each kind. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._ttft: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)
        self._itl: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)
        self._tokens: deque[tuple[int, int]] = deque(maxlen=SPEED_S + 1)
        """(second, tokens of that second), seconds without tokens left out."""

    def output(self, now: float, wait_s: float, n_tokens: int, *, first: bool) -> None:
        """Note one output; `wait_s`: since the acceptance if it is the first, else the last one."""
        (self._ttft if first else self._itl).append((now, wait_s))
        second = int(now)
        if self._tokens and self._tokens[-1][0] == second:
            self._tokens[-1] = (second, self._tokens[-1][1] + n_tokens)
        else:
            self._tokens.append((second, n_tokens))

    def figures(self, now: float) -> Figures:
        """Sum up the last WINDOW_S; the speed is over whole seconds, so the present one waits."""
        end = int(now)
        tokens = sum(n for second, n in self._tokens if end - SPEED_S <= second < end)
        return Figures(
            spread([s for at, s in self._ttft if at > now - WINDOW_S]),
            spread([s for at, s in self._itl if at > now - WINDOW_S]),
            tokens / SPEED_S,
        )


def spread(samples_s: Sequence[float]) -> Spread:
    """Return the percentiles of these seconds by the nearest rank, in milliseconds."""
    ordered = sorted(samples_s)
    n = len(ordered)

    def rank(percent: int) -> float:
        return round(ordered[max(0, -(-n * percent // 100) - 1)] * 1000, 3)

    return Spread(rank(50) if n else None, rank(95) if n >= MIN_FOR_P95 else None, n)
