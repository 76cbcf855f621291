"""Bytes that a model takes, per device, before any of it is downloaded.

Weights and the KV cache are exact: see `weights` and `kv`. The compute buffer is llama.cpp's graph
allocation, replayed (see `scratch`); `dryload` replaces it by a measurement once the file is
there. The overhead is what the process and the backend take for themselves, with its basis in
`budget`.

Placement follows llama.cpp: the last `n_gpu_layers` of `n_layer + 1` layers go to the
accelerator, where the output counts as the last layer; token embeddings stay on the host; tied
embeddings are there a second time as the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from edgekit import kv
from edgekit.budget import (
    RESERVE_BYTES,
    Budget,
    device_budget,
    device_overhead,
    host_budget,
    host_overhead,
)
from edgekit.errors import UsageError
from edgekit.facts import Device, ModelCard
from edgekit.kv import CELLS_STEP, KV_TYPES
from edgekit.scratch import (
    N_UBATCH,
    compute_bytes,
    masks,
    micro_batch_bytes,
    most_tokens,
    output_bytes,
)
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
    mapped: int = 0
    """Bytes of the file that stay mapped though their content was copied."""

    @property
    def resident(self) -> int:
        """What the engine's process shows as resident while memory is free.

        More than `total`, which is what it needs: the kernel takes `mapped` back when it must.
        """
        return self.total + self.mapped

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
    place: Site | None = None,
) -> MemoryPlan:
    """Bytes of `table` (from `weights`) on `device`; `n_gpu_layers` None is all of them.

    `flash_attn`, `streams`: see `compute_bytes`. `place` spares asking for the device's budgets
    again.

    Raises:
        BadDataError: a config that cannot be planned.
        UsageError: an impossible context, user count, KV type or layer count.
    """
    everything = table.shape.n_layer + 1
    offload = everything if n_gpu_layers is None else min(n_gpu_layers, everything)
    place = place or site(device)
    found = demand(
        table,
        n_ctx,
        users,
        offload,
        kv_type,
        n_ubatch,
        flash_attn=flash_attn,
        streams=streams,
        split=place.split,
        cards=place.cards,
    )
    packing = table.packing if place.packs else 0
    process = host_overhead(table.shape.n_vocab)
    main = Part(
        place.memory,
        found.weights,
        found.kv,
        found.compute,
        place.backend + (0 if place.split else process + packing),
        place.own.bytes,
    )
    parts: tuple[Part, ...] = (main,)
    mapped = 0
    if place.split:
        beside = found.host_weights, found.host_kv, found.host_compute
        parts = (main, Part("host", *beside, process, place.host.bytes))
    elif place.memory == "host":
        offload = 0
        mapped = table.copied_amx if place.packs else table.copied
    return MemoryPlan(
        table.filetype,
        n_ctx,
        users,
        kv_type,
        offload,
        everything,
        parts,
        place.own,
        "formula",
        packing,
        mapped,
    )


@dataclass(frozen=True, slots=True)
class Site:
    """What a device has for a model: its budgets, and what backend and process take of them.

    `split`: the accelerator has memory of its own, and the host's lies beside it. `packs`: the
    CPU's own layout of the weights takes more. `cards`: layers are split over so many.
    """

    memory: str
    own: Budget
    host: Budget
    backend: int
    split: bool
    packs: bool
    cards: int = 1

    def over(self, table: Weights, found: Demand) -> int | None:
        """Bytes over the budget that is exceeded most; 0 or less fits, None is unknown."""
        if self.own.bytes is None:
            return None
        process = host_overhead(table.shape.n_vocab)
        over = found.weights + found.kv + found.compute + self.backend - self.own.bytes
        if not self.split:
            return over + process + (table.packing if self.packs else 0)
        if self.host.bytes is None:
            return over
        beside = found.host_weights + found.host_kv + found.host_compute + process
        return max(over, beside - self.host.bytes)


def site(device: Device) -> Site:
    """The budgets of a device, once for all models and contexts."""
    split = device.memory_kind == "dedicated"
    names = {"dedicated": "accelerator", "unified": "unified", "shared": "host"}
    return Site(
        names[device.memory_kind],
        device_budget(device),
        host_budget(device),
        device_overhead(device)[0],
        split,
        not split and device.family.id == "cpu-amx",
        device.count if split else 1,
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes of a plan by place, on whatever device: overheads and budgets are the `Site`'s."""

    weights: int
    kv: int
    compute: int
    host_weights: int = 0
    host_kv: int = 0
    host_compute: int = 0


@lru_cache(maxsize=1 << 16)
def demand(
    table: Weights,
    n_ctx: int,
    users: int,
    offload: int,
    kv_type: str = "f16",
    n_ubatch: int = N_UBATCH,
    *,
    flash_attn: bool = True,
    streams: bool = False,
    split: bool,
    cards: int = 1,
) -> Demand:
    """What `predict` places, see there; kept, since a table of devices asks for the same.

    Each of several `cards` has a scratch buffer of its own, counted as compute, with the room
    that is lost because layers are not cut: no card holds more than its share and a layer.

    Raises as `predict`.
    """
    s = table.shape
    _check(n_ctx, users, offload, s.n_layer + 1)
    cache = kv.table(s, kv_type)
    held = kv.cells(n_ctx, users, cache.window, n_ubatch, streams=streams)
    kv_total = cache.bytes(held)
    n_tokens = most_tokens(min(n_ubatch, n_ctx), users)
    compute = micro_batch_bytes(s, n_ctx, users, n_tokens, n_ubatch, flash_attn, streams, kv_type)
    host_scratch = output_bytes(s, users)
    if not split:
        # One pool: what lies "on the host" lies in the same memory and is counted once.
        return Demand(table.total, kv_total, compute + host_scratch)
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
    _, columns = masks(s, n_ctx, users, n_ubatch, streams=streams)
    staging = n_tokens * (columns * (2 if flash_attn else 4) + 4 * s.n_embd)
    on_cards = compute if offload else 0
    if cards > 1 and offload:
        sizes = [
            table.layers[i] + cache.bytes(held, i) - cache.bytes(held, i + 1)
            for i in range(first, s.n_layer)
        ]
        last = table.output + (table.embedding if table.tied else 0)
        lost = (cards - 1) * compute + cards * max(*sizes, last, 0)
        on_cards += max(0, lost - (cards - 1) * RESERVE_BYTES)
    return Demand(
        gpu_weights,
        cache.bytes(held, first),
        on_cards,
        host_weights,
        kv_total - cache.bytes(held, first),
        (compute if first else staging) + host_scratch,
    )


def _check(n_ctx: int, users: int, n_gpu_layers: int, everything: int) -> None:
    problem = None
    if n_ctx < 1:
        problem = f"a context of {n_ctx} tokens is impossible"
    elif not 1 <= users <= 256:
        problem = f"{users} users are impossible; the engine runs 1 to 256 sequences"
    elif n_gpu_layers < 0:
        problem = f"{n_gpu_layers} layers are impossible; the model has {everything}"
    if problem:
        raise UsageError(problem, code="bad_plan", hint="correct the option")
