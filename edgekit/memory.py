"""Bytes that a model takes, per device, before any of it is downloaded.

Weights are exact: the recipe's own rules on the shapes of the config. The KV cache is exact. The
compute buffer is llama.cpp's graph allocation as a formula that fits 17 measured runs of two
shapes within 3 %; `dryload` replaces it by a measurement once the file is there. The overhead is
what the process and the backend take for themselves, with its basis in `budget`.

Placement follows llama.cpp: the last `n_gpu_layers` of `n_layer + 1` layers go to the
accelerator, where the output counts as the last layer; token embeddings stay on the host; tied
embeddings are there a second time as the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.budget import Budget, device_budget, device_overhead, host_budget, host_overhead
from edgekit.errors import BadDataError, UsageError, from_foreign
from edgekit.facts import Device, ModelCard

CELLS_STEP: Final = 256
"""llama.cpp rounds a context up to a multiple of this many cells."""

N_UBATCH: Final = 512

KV_TYPES: Final[dict[str, tuple[int, int]]] = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
}
"""Storage type of keys and values -> bytes, per so many values."""


_AMX_BYTES_PER_BLOCK: Final = {"Q8_0": 4, "Q4_K": 4, "Q5_K": 4, "IQ4_XS": 2}
"""What llama.cpp's AMX layout adds to each block of a matrix; dry loads of all file types agree
to the byte."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense decoder, from its Hugging Face config."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensor bytes by place: embeddings, each layer, output. Each tensor is padded to 32."""

    filetype: str
    embedding: int
    layers: tuple[int, ...]
    output: int
    tied: bool
    packing: int
    """Bytes more when a CPU with AMX repacks the matrices."""

    @property
    def total(self) -> int:
        """The data section of the GGUF."""
        return self.embedding + sum(self.layers) + self.output

    @property
    def read_per_token(self) -> int:
        """Bytes read for one decoded token: all but the embedding table, of which one row."""
        return sum(self.layers) + (self.embedding if self.tied else self.output)


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


def shape(config: Mapping[str, object]) -> Shape:
    """Sizes of a dense decoder.

    Raises:
        BadDataError: a size is missing or no positive whole number.
    """
    n_head = _size(config, "num_attention_heads")
    n_embd = _size(config, "hidden_size")
    return Shape(
        n_layer=_size(config, "num_hidden_layers"),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=_size(config, "num_key_value_heads", n_head),
        head_dim=_size(config, "head_dim", max(1, n_embd // n_head)),
        n_ff=_size(config, "intermediate_size"),
        n_vocab=_size(config, "vocab_size"),
    )


def weights(card: ModelCard, filetype: str) -> Weights:
    """Exact tensor bytes of a model in a file type.

    Raises:
        BadDataError: a config or an architecture the recipe cannot plan.
        UsageError: no such file type.
    """
    from edgekit_quantize import architectures, recipe, tensor_types
    from edgekit_quantize.errors import QuantizeError

    try:
        architecture = architectures.for_config(card.config)
        tensors = architecture.tensors(card.config)
        kinds = recipe.assign(tensors, filetype, architecture.recipe_params(card.config))
    except QuantizeError as error:
        raise from_foreign(error) from error
    layers = [0] * shape(card.config).n_layer
    embedding = output = packing = 0
    names = set()
    for tensor, kind in zip(tensors, kinds, strict=True):
        size = tensor_types.align(tensor_types.tensor_bytes(kind, tensor.shape))
        names.add(tensor.name)
        if not tensor.name.startswith("token_embd"):
            extra = _AMX_BYTES_PER_BLOCK.get(kind.name, 0)
            packing += math.prod(tensor.shape) // kind.block * extra
        if tensor.name.startswith("blk."):
            layers[int(tensor.name.split(".")[1])] += size
        elif tensor.name.startswith("token_embd"):
            embedding += size
        else:
            output += size
    tied = "output.weight" not in names
    return Weights(filetype, embedding, tuple(layers), output, tied, packing)


def kv_bytes_per_token(config: Mapping[str, object], kv_type: str = "f16") -> int:
    """Bytes of keys and values of one cell over all layers.

    Source: llama.cpp's KV cache, per layer one K and one V row of n_head_kv x head_dim values.

    Raises:
        UsageError: not a KV type we know, or rows that are no multiple of its block.
    """
    s = shape(config)
    return s.n_layer * _kv_layer_bytes(s, kv_type)


def cells(n_ctx: int) -> int:
    """KV cells that llama.cpp allocates for a context, padded to 256."""
    return -(-n_ctx // CELLS_STEP) * CELLS_STEP


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
    card: ModelCard,
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
    s = shape(card.config)
    everything = s.n_layer + 1
    _check(n_ctx, users, n_gpu_layers, everything)
    offload = everything if n_gpu_layers is None else min(n_gpu_layers, everything)
    kv_layer = cells(n_ctx) * _kv_layer_bytes(s, kv_type)
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
                kv_layer * s.n_layer,
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
                kv_layer * on_gpu,
                compute if offload else 0,
                backend,
                own.bytes,
            ),
            Part(
                "host",
                host_weights,
                kv_layer * first,
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


def _kv_layer_bytes(s: Shape, kv_type: str) -> int:
    """Bytes of one cell in one layer."""
    known = KV_TYPES.get(kv_type)
    row = s.n_head_kv * s.head_dim
    if known is None or row % known[1]:
        raise UsageError(
            f"keys and values cannot be stored as {kv_type!r}",
            code="bad_kv_type",
            hint=f"known types: {', '.join(KV_TYPES)}; rows of {row} values must be whole blocks",
        )
    return 2 * row * known[0] // known[1]


def _size(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadDataError(
            f"config: {key} is {value!r}, not a positive whole number",
            code="bad_config_json",
            hint="check the model's config.json",
        )
    return value
