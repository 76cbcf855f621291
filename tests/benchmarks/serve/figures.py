"""Statistics of interleaved runs, and the targets they are held against. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """What one server did in one round of one scenario. No figures: it failed, see `error`."""

    scenario: str
    server: str
    round: int
    figures: Figures = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """A comparison over all rounds in which both sides have the figure."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure of ours should be: by itself, divided by the peer's, or less the peer's."""

    about: str
    scenario: str
    figure: str
    sign: str
    """>= or <=."""
    limit: float
    how: str = "ratio"
    """ratio, value or difference."""
    peer: str = "llama-server"
    ours: str = "edgekit"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target beside what was measured. `spread` and `held` are None: it was not measured."""

    target: Target
    spread: Spread | None
    held: bool | None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed.

    The nearest-rank definition: always one that was measured. ValueError for no values.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share {share} is not in (0, 1]")
    ordered = sorted(values)
    # Rounded first: 0.95 * 20 is a hair above 19 in floating point.
    return ordered[math.ceil(round(share * len(ordered), 9)) - 1]


def spread(values: Sequence[float]) -> Spread | None:
    """Return the middle and both ends; None for no values."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def medians(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return server -> figure -> median over the rounds that have it."""
    gathered: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for name, value in run.figures.items():
            gathered[run.server][name].append(value)
    return {
        server: {name: statistics.median(values) for name, values in figures.items()}
        for server, figures in gathered.items()
    }


def compare(runs: Iterable[Run], figure: str, ours: str, peer: str, how: str) -> Spread | None:
    """Compare two servers round by round, so that what drifts in time cancels out.

    `how`: ratio (ours / peer), difference (ours - peer), or value (ours; `peer` is not used).
    """
    by_round: dict[int, dict[str, float]] = defaultdict(dict)
    for run in runs:
        if figure in run.figures:
            by_round[run.round][run.server] = run.figures[figure]
    values = []
    for found in by_round.values():
        mine, other = found.get(ours), found.get(peer)
        if mine is None:
            continue
        if how == "value":
            values.append(mine)
        elif other is not None and how == "difference":
            values.append(mine - other)
        elif other and how == "ratio":
            values.append(mine / other)
    return spread(values)


def judge(target: Target, runs: Iterable[Run]) -> Verdict:
    """Hold the median of a comparison against its target."""
    own = [run for run in runs if run.scenario == target.scenario]
    found = compare(own, target.figure, target.ours, target.peer, target.how)
    if found is None:
        return Verdict(target, None, None)
    held = found.median >= target.limit if target.sign == ">=" else found.median <= target.limit
    return Verdict(target, found, held)


def orders(servers: Sequence[str], n_rounds: int) -> list[list[str]]:
    """Return who runs when: every round all of them, each of them first in its turn."""
    n = len(servers)
    return [[servers[(start + i) % n] for i in range(n)] for start in range(n_rounds)]


def gaps(times: Sequence[float], start: float, end: float) -> list[float]:
    """Return the gaps between consecutive arrivals that overlap the window from start to end."""
    return [after - before for before, after in pairwise(times) if after > start and before < end]
