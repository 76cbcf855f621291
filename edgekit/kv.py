"""Bytes of the KV cache, per layer, exactly as llama.cpp allocates them.

Source: llama.cpp's src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp
and llama-hparams.cpp. A layer has one K and one V tensor of `cells` rows; latent attention
(MLA) has a K tensor alone, of the compressed row. A layer with a window (or Llama 4's chunks)
holds only the cells that the windows of all sequences and one micro-batch can need. A recurrent
layer holds a fixed state in F32 for each sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from edgekit.errors import UsageError
from edgekit.shape import Shape

CELLS_STEP: Final = 256
"""llama.cpp rounds a context up to a multiple of this many cells."""

KV_TYPES: Final[dict[str, tuple[int, int]]] = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
}
"""Storage type of keys and values -> bytes, per so many values."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells over all streams: in layers that see everything, in layers with a window.

    `sequences` is the number of states that a recurrent layer holds.
    """

    full: int
    windowed: int
    sequences: int


@dataclass(frozen=True, slots=True)
class LayerKv:
    """Bytes of one layer: of K and of V per cell, how many cells, and its recurrent state."""

    k: int
    v: int
    cells: int
    state: int

    @property
    def bytes(self) -> int:
        return (self.k + self.v) * self.cells + self.state


@dataclass(frozen=True, slots=True)
class KvTable:
    """Sums over the layers from `i` to the end, for i in 0..n_layer, so that a split is cheap.

    `full` and `windowed` are bytes per cell, `state` bytes per sequence.
    """

    full: tuple[int, ...]
    windowed: tuple[int, ...]
    state: tuple[int, ...]
    window: int

    def bytes(self, cells: Cells, first: int = 0) -> int:
        """Bytes of the layers from `first` on."""
        return (
            self.full[first] * cells.full
            + self.windowed[first] * cells.windowed
            + self.state[first] * cells.sequences
        )


def padded(n_ctx: int) -> int:
    """KV cells that llama.cpp allocates for a context, padded to 256."""
    return -(-n_ctx // CELLS_STEP) * CELLS_STEP


def cells(n_ctx: int, users: int, window: int, n_ubatch: int, *, streams: bool = False) -> Cells:
    """Cells for a context of `n_ctx` in all, with windows of `window` tokens.

    `streams`: each user has n_ctx / users cells alone, in a stream of its own (`kv_unified` off);
    without it all share one stream.
    """
    one = padded(padded(n_ctx) // users) if streams else padded(n_ctx)
    local = padded(min(one, window * (1 if streams else users) + n_ubatch))
    n_streams = users if streams else 1
    return Cells(one * n_streams, local * n_streams, users)


@cache
def table(shape: Shape, kv_type: str = "f16") -> KvTable:
    """The sums of a model's layers.

    Raises:
        UsageError: not a KV type we know, or rows that are no multiple of its block.
    """
    full, windowed, state = [0], [0], [0]
    for index in range(shape.n_layer - 1, -1, -1):
        k, v = _row_bytes(shape, index, kv_type)
        local = bool(shape.windows) and shape.windows[index] > 0
        full.append(full[-1] + (0 if local else k + v))
        windowed.append(windowed[-1] + (k + v if local else 0))
        # The state is F32 whatever the cache's type.
        state.append(state[-1] + (4 * shape.state[index] if shape.state else 0))
    window = max(shape.windows, default=0)
    return KvTable(tuple(full[::-1]), tuple(windowed[::-1]), tuple(state[::-1]), window)


def layers(
    shape: Shape,
    kv_type: str,
    n_ctx: int,
    users: int,
    n_ubatch: int = 512,
    *,
    streams: bool = False,
) -> list[LayerKv]:
    """The cache layer by layer, for a report that shows its work. Raises as `table`."""
    found = cells(n_ctx, users, max(shape.windows, default=0), n_ubatch, streams=streams)
    rows = []
    for index in range(shape.n_layer):
        k, v = _row_bytes(shape, index, kv_type)
        local = bool(shape.windows) and shape.windows[index] > 0
        state = 4 * shape.state[index] * found.sequences if shape.state else 0
        held = (found.windowed if local else found.full) if k else 0
        rows.append(LayerKv(k, v, held, state))
    return rows


def _row_bytes(shape: Shape, index: int, kv_type: str) -> tuple[int, int]:
    """Bytes of one cell's K and V in a layer."""
    if shape.state and shape.state[index]:
        return 0, 0
    if shape.cached and not shape.cached[index]:
        return 0, 0
    if shape.mla is not None:
        return _stored(shape.mla.kv_rank + shape.mla.rope, kv_type), 0
    row = shape.n_head_kv * shape.head_dim
    if shape.global_row is not None and not (shape.windows and shape.windows[index]):
        row = shape.global_row
    stored = _stored(row, kv_type)
    return stored, stored


def _stored(values: int, kv_type: str) -> int:
    known = KV_TYPES.get(kv_type)
    if known is None or values % known[1]:
        raise UsageError(
            f"keys and values cannot be stored as {kv_type!r}",
            code="bad_kv_type",
            hint=f"known types: {', '.join(KV_TYPES)}; rows of {values} values must be whole "
            "blocks",
        )
    return values // known[1] * known[0]
