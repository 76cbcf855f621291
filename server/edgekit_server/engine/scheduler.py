"""Which tokens the next step computes. Pure: numbers in, a plan out.

There are no phases. Each running request has some tokens that are not yet in memory; one that
is decoding has exactly one. Decode rows go first, so running streams never wait for a prompt;
what is left of the budget goes to prompts, shortest remaining first, with ageing so that a long
prompt cannot starve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HALVING_S = 1.0
"""A second of waiting halves the length that a prompt competes with."""


@dataclass(frozen=True, slots=True)
class Work:
    """One running request, as the scheduler sees it."""

    key: int
    seq: int
    remaining: int
    """Tokens not yet computed, at least 1."""
    decoding: bool
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` tokens of one request; `output`: they end it, so sample afterwards."""

    key: int
    seq: int
    count: int
    output: bool


def budget(n_decoding: int, *, n_batch: int, n_ubatch: int) -> int:
    """Return the most rows of one step.

    One compute pass (n_ubatch) while anything decodes, so that a prompt delays running streams
    by one pass only; otherwise the whole n_batch. Always room for one prompt token at least.
    """
    if n_decoding == 0:
        return n_batch
    return min(n_batch, max(n_ubatch, n_decoding + 1))


def plan(works: Sequence[Work], *, n_batch: int, n_ubatch: int) -> list[Chunk]:
    """Return the chunks of one step in ascending order of sequence id.

    Rows sorted by sequence keep llama.cpp's graph reuse. At most one output row per request.
    """
    decoding = [work for work in works if work.decoding]
    left = budget(len(decoding), n_batch=n_batch, n_ubatch=n_ubatch)
    chunks = [Chunk(work.key, work.seq, 1, True) for work in decoding[:left]]
    left -= len(chunks)
    for work in sorted((work for work in works if not work.decoding), key=_prefill_order):
        if left == 0:
            break
        count = min(left, work.remaining)
        chunks.append(Chunk(work.key, work.seq, count, count == work.remaining))
        left -= count
    return sorted(chunks, key=lambda chunk: chunk.seq)


def _prefill_order(work: Work) -> tuple[float, int]:
    """Sort key: log2 of the remaining length, less one for every HALVING_S waited."""
    return math.log2(work.remaining) - work.waited_s / HALVING_S, work.key


def can_admit(*, free_cells: int, needed: int, reserved: int) -> bool:
    """Whether a request may start: room for it beyond what the running ones may still take."""
    return needed + reserved <= free_cells
