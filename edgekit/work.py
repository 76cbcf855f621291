"""What one step of a model reads and computes, whatever it runs on.

Bytes come from the recipe (or from the size of a published file), operations from the shapes of
the matrices. `speed_terms` turns both into seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from edgekit import kv
from edgekit.facts import ModelCard
from edgekit.memory import Weights, tensor_specs
from edgekit.shape import Shape
from edgekit.weights import config_key


@dataclass(frozen=True, slots=True)
class Params:
    """Values in matrices: outside the experts, in all experts, in the output, in all tables
    that are looked up row by row (a tied output is one of them)."""

    dense: int
    experts: int
    head: int
    tables: int


@dataclass(frozen=True, slots=True)
class Work:
    """The sizes that decide the speed of a model in one file type.

    `dense_bytes` and `expert_bytes` are read in a decode step: the first whole, of the second the
    experts that are used. `cached` counts layers by how far back they see (0 is all the way) and
    the bytes of one cell's keys and values there: (window, bytes, layers).
    """

    unpack: str
    layers: int
    n_embd: int
    dense_bytes: float
    expert_bytes: float
    params: Params
    n_experts: int
    n_used: int
    heads_width: int
    cached: tuple[tuple[int, int, int], ...]
    recurrent: int = 0
    """Layers that keep a matrix for each head instead of keys and values; the few values of a
    short convolution do not count."""

    def experts_touched(self, tokens: int) -> float:
        """Share of the experts that a batch of so many tokens needs at all, if each draws its
        own at random: 1 - (1 - used / count) ^ tokens."""
        if not self.n_experts:
            return 0.0
        return 1.0 - (1.0 - self.n_used / self.n_experts) ** tokens

    def read_bytes(self, tokens: int = 1) -> float:
        """Bytes of weights that a step with so many tokens reads."""
        return self.dense_bytes + self.expert_bytes * self.experts_touched(tokens)

    @property
    def used_params(self) -> float:
        """Parameters that each token is multiplied with, output included."""
        return self.params.dense + self.params.head + self.expert_params

    @property
    def expert_params(self) -> float:
        """Of the experts' parameters, those that one token passes."""
        return self.params.experts * self.n_used / self.n_experts if self.n_experts else 0.0

    def cache_bytes(self, depth: float) -> float:
        """Bytes of keys and values that one token at a depth reads."""
        return sum(row * n * _seen(window, depth) for window, row, n in self.cached)

    def attention_flops(self, depth: float) -> float:
        """Operations of one token's attention over `depth` cells: two products, two each."""
        cells = sum(n * _seen(window, depth) for window, row, n in self.cached if row)
        return 4.0 * self.heads_width * cells


def _seen(window: int, depth: float) -> float:
    return min(depth, window) if window else depth


def work(card: ModelCard, table: Weights, unpack: str, kv_type: str = "f16") -> Work:
    """The work of a model in the file type that `table` was made for.

    Raises:
        BadDataError, UsageError: see `memory.weights` and `kv.table`.
    """
    known = _done.get((table, unpack, kv_type))
    if known is None:
        known = _done[table, unpack, kv_type] = _work(card, table, unpack, kv_type)
    return known


_done: dict[tuple[Weights, str, str], Work] = {}
"""One judgement asks for the same work several times, and a table of all devices thousands."""


def _work(card: ModelCard, table: Weights, unpack: str, kv_type: str) -> Work:
    found = params(card)
    # Of tied tables only the one that is the output too is read whole.
    dense = table.embedding * found.head // found.tables if table.tied else table.output
    dense += sum(table.layers) - table.experts
    return from_sizes(table.shape, found, float(dense), float(table.experts), unpack, kv_type)


def from_sizes(
    s: Shape,
    found: Params,
    dense_bytes: float,
    expert_bytes: float,
    unpack: str,
    kv_type: str = "f16",
) -> Work:
    """Work from a shape and bytes that are known from elsewhere."""
    rows = kv.layers(s, kv_type, kv.CELLS_STEP, 1)
    windows = s.windows or (0,) * s.n_layer
    kinds = Counter((w, row.k + row.v) for w, row in zip(windows, rows, strict=True))
    return Work(
        unpack=unpack,
        layers=s.n_layer,
        n_embd=s.n_embd,
        dense_bytes=dense_bytes,
        expert_bytes=expert_bytes,
        params=found,
        n_experts=s.experts.count if s.experts else 0,
        n_used=s.experts.used if s.experts else 0,
        heads_width=s.n_head * s.head_dim,
        cached=tuple((window, row, n) for (window, row), n in kinds.items()),
        recurrent=sum(1 for values in s.state if values > 16 * s.n_embd),
    )


def params(card: ModelCard) -> Params:
    """Count the values of a model's matrices. Raises BadDataError as `memory.weights`."""
    return _params(config_key(card), card.gguf_arch)


@lru_cache(maxsize=512)
def _params(config_json: str, gguf_arch: str | None) -> Params:
    dense = experts = head = embedding = tables = 0
    for tensor in tensor_specs(config_json, gguf_arch):
        if len(tensor.shape) < 2:
            continue
        size = math.prod(tensor.shape)
        if "_exps." in tensor.name:
            experts += size
        elif tensor.name.startswith("blk."):
            dense += size
        elif tensor.name.startswith("token_embd"):
            embedding = size
            tables += size
        elif tensor.name.startswith("output"):
            head = size
        else:
            tables += size
    return Params(dense, experts, head or embedding, tables)
