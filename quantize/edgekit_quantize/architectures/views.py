"""Ways to look at a stored array without copying it: cut an axis, keep a piece, swap two axes.

Every layout change between a checkpoint and llama.cpp (rows in rotary order, fused experts,
interleaved gates) is a chain of these steps. The last axis of the result is a row of the GGUF
tensor; all axes before it count its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """One axis becomes `sizes`, whose product must be its length."""

    axis: int
    sizes: Dims


@dataclass(frozen=True, slots=True)
class Take:
    """Keep `start:stop:step` of one axis."""

    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Swap:
    """Two axes change places."""

    one: int
    other: int


View = tuple[Split | Take | Swap, ...]


def rope_pairs(heads: int, head_dim: int) -> View:
    """Put the rows of Q or K into llama.cpp's rotary order.

    transformers rotates value j with value j + d/2 of a head, llama.cpp's `llama` graph rotates
    neighbours: GGUF row 2j + i of a head is stored row j + i d/2 (llama.cpp's `permute`).
    """
    return (Split(0, (heads, 2, head_dim // 2)), Swap(1, 2))


def viewed_shape(shape: Dims, view: View) -> Dims | None:
    """Return the shape after `view`, or None when the view does not fit the shape."""
    now = list(shape)
    for step in view:
        if isinstance(step, Swap):
            if not (0 <= step.one < len(now) and 0 <= step.other < len(now)):
                return None
            now[step.one], now[step.other] = now[step.other], now[step.one]
        elif not 0 <= step.axis < len(now):
            return None
        elif isinstance(step, Split):
            if math.prod(step.sizes) != now[step.axis]:
                return None
            now[step.axis : step.axis + 1] = step.sizes
        else:
            if not 0 <= step.start <= step.stop <= now[step.axis] or step.step < 1:
                return None
            now[step.axis] = len(range(step.start, step.stop, step.step))
    return tuple(now)
