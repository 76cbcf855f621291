"""Bytes that a model takes, per device, before any of it is downloaded.

Weights and the KV cache are exact: see `weights` and `kv`. The compute buffer is llama.cpp's graph
allocation as a formula that fits 17 measured runs of two shapes within 3 %; `dryload` replaces it
by a measurement once the file is there. The overhead is what the process and the backend take for
themselves, with its basis in `budget`.

Placement follows llama.cpp: the last `n_gpu_layers` of `n_layer + 1` layers go to the
accelerator, where the output counts as the last layer; token embeddings stay on the host; tied
embeddings are there a second time as the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit import kv
from edgekit.budget import Budget, device_budget, device_overhead, host_budget, host_overhead
from edgekit.errors import UsageError
from edgekit.facts import Device, ModelCard
from edgekit.kv import CELLS_STEP, KV_TYPES
from edgekit.shape import Shape, shape
from edgekit.weights import HEADER_BYTES_PER_TOKEN, Weights, file_bytes, tensor_specs, weights

__all__ = [
    "CELLS_STEP",
    "HEADER_BYTES_PER_TOKEN",
    "KV_TYPES",
    "N_UBATCH",
    "MemoryPlan",
    "Part",
    "Shape",
    "Weights",
    "cells",
    "compute_bytes",
    "file_bytes",
    "kv_bytes_per_token",
    "output_bytes",
    "predict",
    "shape",
    "tensor_specs",
    "weights",
]

N_UBATCH: Final = 512


@dataclass(frozen=True, slots=True)
class Part:
    """One memory's share of a plan, in bytes. `budget` None is unknown."""

    memory: str
    weights: int
    kv: int
    compute: int
    overhead: int
    budget: int | None

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.overhead

    @property
    def fits(self) -> bool:
        """Whether it is within its budget; an unknown budget refuses nothing."""
        return self.budget is None or self.total <= self.budget


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one model, file type, context and offload on one device.

    `n_ctx` is the number of KV cells that all `users` share. `parts[0]` holds the layers on the
    device; a second part is host memory beside a dedicated accelerator.
    """

    filetype: str
    n_ctx: int
    users: int
    kv_type: str
    n_gpu_layers: int
    n_layers: int
    parts: tuple[Part, ...]
    device: Budget
    basis: str
    packing: int = 0
    """The part of `overhead` that is the CPU's own layout of the weights."""

    @property
    def weights(self) -> int:
        return sum(p.weights for p in self.parts)

    @property
    def kv(self) -> int:
        return sum(p.kv for p in self.parts)

    @property
    def compute(self) -> int:
        return sum(p.compute for p in self.parts)

    @property
    def overhead(self) -> int:
        return sum(p.overhead for p in self.parts)

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.overhead

    @property
    def budget(self) -> int | None:
        """The device's budget and, beside it, the host memory that this plan uses.

        So `total <= budget` says that the device's part fits, whatever the host has; the host's
        own limit is checked by `fits`.
        """
        main, *rest = self.parts
        return None if main.budget is None else main.budget + sum(p.total for p in rest)

    @property
    def fits(self) -> bool:
        return self.parts[0].budget is not None and all(p.fits for p in self.parts)

    @property
    def missing(self) -> int | None:
        """Bytes over the budget of the device's part; negative is spare, None is unknown."""
        main = self.parts[0]
        return None if main.budget is None else main.total - main.budget


def kv_bytes_per_token(config: Mapping[str, object], kv_type: str = "f16") -> int:
    """Bytes of keys and values of one cell over all layers, windows or not.

    Raises:
        UsageError: not a KV type we know, or rows that are no multiple of its block.
    """
    table = kv.table(shape(config), kv_type)
    return table.full[0] + table.windowed[0]


def cells(n_ctx: int) -> int:
    """KV cells that llama.cpp allocates for a context, padded to 256."""
    return kv.padded(n_ctx)


def compute_bytes(
    s: Shape,
    n_ctx: int,
    users: int,
    n_ubatch: int = N_UBATCH,
    *,
    flash_attn: bool = True,
    streams: bool = False,
) -> int:
    """The graph's scratch buffer in bytes; `streams`: each user has n_ctx / users cells alone.

    The larger of the feed-forward phase (mask, hidden states and gate, up, product) and the
    logits phase (one row of logits and two hidden states per sequence, because the engine sets
    n_outputs_max to the number of sequences). Without flash attention the scores of all heads
    and the mask in f32 stand in memory as well. Fits 40 dry loads of four shapes within 3 %.
    """
    n_kv = cells(n_ctx // users if streams else n_ctx)
    n_outputs = min(users, n_ubatch)
    feed_forward = 2 * n_ubatch * n_kv + 4 * n_ubatch * (3 * s.n_ff + 4 * s.n_embd)
    logits = 4 * n_outputs * s.n_vocab + 8 * n_outputs * s.n_embd
    if flash_attn:
        return max(feed_forward, logits)
    scores = 4 * n_ubatch * n_kv * (s.n_head + 1) + 22 * n_ubatch * s.n_embd
    return max(feed_forward, logits, scores)


def output_bytes(s: Shape, users: int) -> int:
    """The buffer, in host memory, that logits are copied to: one f32 row per sequence."""
    return 4 * s.n_vocab * users


def predict(
    card: ModelCard,  # noqa: ARG001 - the table was made from it
    device: Device,
    table: Weights,
    *,
    n_ctx: int,
    users: int,
    n_gpu_layers: int | None = None,
    kv_type: str = "f16",
    n_ubatch: int = N_UBATCH,
    flash_attn: bool = True,
    streams: bool = False,
) -> MemoryPlan:
    """Bytes of `table` (from `weights`) on `device`; `n_gpu_layers` None is all of them.

    `flash_attn`, `streams`: see `compute_bytes`.

    Raises:
        BadDataError: a config that cannot be planned.
        UsageError: an impossible context, user count, KV type or layer count.
    """
    s = table.shape
    everything = s.n_layer + 1
    _check(n_ctx, users, n_gpu_layers, everything)
    offload = everything if n_gpu_layers is None else min(n_gpu_layers, everything)
    cache = kv.table(s, kv_type)
    held = kv.cells(n_ctx, users, cache.window, n_ubatch, streams=streams)
    kv_total = cache.bytes(held)
    compute = compute_bytes(s, n_ctx, users, n_ubatch, flash_attn=flash_attn, streams=streams)
    host_scratch = output_bytes(s, users)
    own, host = device_budget(device), host_budget(device)
    backend, _ = device_overhead(device)
    process = host_overhead(s.n_vocab)
    packing = table.packing if device.family.id == "cpu-amx" else 0
    if device.memory_kind != "dedicated":
        # One pool: what lies "on the host" lies in the same memory and is counted once.
        parts: tuple[Part, ...] = (
            Part(
                "host" if device.memory_kind == "shared" else "unified",
                table.total,
                kv_total,
                compute + host_scratch,
                process + backend + packing,
                own.bytes,
            ),
        )
        if device.memory_kind == "shared":
            offload = 0
    else:
        on_gpu = min(max(offload - 1, 0), s.n_layer)
        first = s.n_layer - on_gpu
        gpu_weights = sum(table.layers[first:])
        if offload:
            gpu_weights += table.embedding + table.output if table.tied else table.output
        host_weights = table.embedding + sum(table.layers[:first])
        if not offload and not table.tied:
            host_weights += table.output
        # Embedding rows and the mask of a batch pass through a pinned buffer of the host;
        # layers that stay there need the whole scratch.
        mask = cells(n_ctx // users if streams else n_ctx) * (2 if flash_attn else 4)
        staging = n_ubatch * mask + 4 * n_ubatch * s.n_embd
        packing = 0
        parts = (
            Part(
                "accelerator",
                gpu_weights,
                cache.bytes(held, first),
                compute if offload else 0,
                backend,
                own.bytes,
            ),
            Part(
                "host",
                host_weights,
                kv_total - cache.bytes(held, first),
                (compute if first else staging) + host_scratch,
                process,
                host.bytes,
            ),
        )
    return MemoryPlan(
        table.filetype, n_ctx, users, kv_type, offload, everything, parts, own, "formula", packing
    )


def _check(n_ctx: int, users: int, n_gpu_layers: int | None, everything: int) -> None:
    problem = None
    if n_ctx < 1:
        problem = f"a context of {n_ctx} tokens is impossible"
    elif not 1 <= users <= 256:
        problem = f"{users} users are impossible; the engine runs 1 to 256 sequences"
    elif n_gpu_layers is not None and n_gpu_layers < 0:
        problem = f"{n_gpu_layers} layers are impossible; the model has {everything}"
    if problem:
        raise UsageError(problem, code="bad_plan", hint="correct the option")
