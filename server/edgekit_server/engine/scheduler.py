"""Which tokens the next step computes. Pure: numbers in, a plan out.

There are no phases. Each running request has some tokens that are not yet in memory; one that
is decoding has one, or a few where a grammar forced some, and drafts after them. Decode rows go
first, so running streams never wait for a prompt, then drafts; what is left of the budget goes to
prompts, shortest remaining first, with ageing so that a long prompt cannot starve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    pause: int | None = None
    """A prompt's chunk is no longer than this: the memory is saved there."""
    n_drafts: int = 0
    """Guessed tokens to compute after the known ones; the caller keeps them within n_ubatch."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` tokens of one request; `output`: they end it, so sample afterwards."""

    key: int
    seq: int
    count: int
    output: bool
    decoding: bool = field(default=False, compare=False)
    n_drafts: int = 0
    """Guessed tokens after those, with outputs of their own."""

    @property
    def n_rows(self) -> int:
        return self.count + self.n_drafts


def budget(n_decoding: int, *, n_batch: int, n_alone: int, n_mixed: int) -> int:
    """Return the most rows of one step: `n_mixed` while anything decodes, so that a prompt
    delays running streams little, else `n_alone`. Always room for one prompt token at least.
    """
    if n_decoding == 0:
        return min(n_batch, n_alone)
    return min(n_batch, max(n_mixed, n_decoding + 1))


def plan(works: Sequence[Work], *, n_batch: int, n_alone: int, n_mixed: int) -> list[Chunk]:
    """Return the chunks of one step in ascending order of sequence id; see `budget`.

    Rows sorted by sequence keep llama.cpp's graph reuse. Outputs at most: one per request and
    one per draft.
    """
    decoding = [work for work in works if work.decoding]
    prompts = [work for work in works if not work.decoding]
    n_known = sum(work.remaining for work in decoding)
    left = budget(n_known, n_batch=n_batch, n_alone=n_alone, n_mixed=n_mixed)
    spare = left - n_known - bool(prompts)
    chunks: list[Chunk] = []
    for work in decoding:
        count = min(left, work.remaining)
        if count == 0:
            break
        n_drafts = max(0, min(work.n_drafts, spare)) if count == work.remaining else 0
        chunks.append(Chunk(work.key, work.seq, count, count == work.remaining, True, n_drafts))
        left -= count + n_drafts
        spare -= n_drafts
    for work in sorted(prompts, key=_prefill_order):
        if left == 0:
            break
        count = min(left, work.remaining, work.pause or left)
        chunks.append(Chunk(work.key, work.seq, count, count == work.remaining))
        left -= count
    return sorted(chunks, key=lambda chunk: chunk.seq)


def _prefill_order(work: Work) -> tuple[float, int]:
    """Sort key: log2 of the remaining length, less one for every HALVING_S waited."""
    return math.log2(work.remaining) - work.waited_s / HALVING_S, work.key


def can_admit(*, free_cells: int, needed: int, reserved: int) -> bool:
    """Whether a request may start: room for it beyond what the running ones may still take."""
    return needed + reserved <= free_cells
