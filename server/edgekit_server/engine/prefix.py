"""Leading tokens that two sequences have in common, and the cells they take. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

Span = tuple[int, int, int]
"""(birth, start, end): cells of consecutive positions. Spans of one birth are the same cells
where they overlap; a negative birth may still be extended."""


def common_prefix(a: array[int], b: array[int], most: int | None = None) -> int:
    """Return how many leading tokens are equal, `most` at most."""
    n = min(len(a), len(b)) if most is None else max(0, min(len(a), len(b), most))
    if n == 0 or a[0] != b[0]:
        return 0
    differ = np.frombuffer(a, np.int32, n) != np.frombuffer(b, np.int32, n)
    at = int(differ.argmax())
    return at if differ[at] else n


def clip(spans: list[Span], length: int) -> list[Span]:
    """Return the spans of the positions below `length`."""
    return [(birth, start, min(end, length)) for birth, start, end in spans if start < length]


def closed(spans: list[Span]) -> list[Span]:
    """Mark spans as not to be extended: what comes next has other cells at the same positions."""
    return [(abs(birth), start, end) for birth, start, end in spans]


def overlap(a: Iterable[Span], b: Iterable[Span], start: int) -> bool:
    """Whether two sequences share cells at positions from `start` on."""
    mine = [span for span in a if span[2] > start]
    return any(
        abs(birth) == abs(other) and max(first, begin, start) < min(last, end)
        for birth, first, last in mine
        for other, begin, end in b
    )


def union(spans: Iterable[Span]) -> int:
    """Return the cells covered by spans, each cell once."""
    total = 0
    reached: dict[int, int] = {}
    for birth, start, end in sorted((abs(birth), start, end) for birth, start, end in spans):
        begin = max(start, reached.get(birth, 0))
        if end > begin:
            total += end - begin
            reached[birth] = end
    return total
