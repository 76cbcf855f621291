"""The memory figures of a verdict, filled in: weights, cache, scratch, overhead, budget."""

from __future__ import annotations

from collections import Counter

from edgekit import kv, memory, scratch
from edgekit.budget import device_overhead, host_overhead
from edgekit.candidate import Candidate
from edgekit.explained import Figure, Input, amount, gib, plain, total
from edgekit.memory import CELLS_STEP, N_UBATCH, Weights
from edgekit.units import UNKNOWN, format_bytes

SCRATCH_SOURCE = "the order in which llama.cpp's graph makes and frees its tensors, replayed"


def figures(c: Candidate, table: Weights) -> list[Figure]:
    """Needs, budget, their parts, and the longest context."""
    return [
        _needs(c), _budget(c), _weights(c, table), _kv(c, table), _compute(c, table),
        _overhead(c, table), _file(c), _largest(c, table),
    ]  # fmt: skip


def _needs(c: Candidate) -> Figure:
    filled = tuple(
        f"{p.memory}: "
        + total([("weights", p.weights), ("KV cache", p.kv), ("compute", p.compute),
                 ("overhead", p.overhead)])
        for p in c.plan.parts
    )  # fmt: skip
    main = c.plan.parts[0]
    return Figure(
        "needs",
        "Memory needed",
        gib(main.total),
        "weights + KV cache + compute buffers + overhead, for each memory apart",
        filled,
        (Input("memory that decides", main.memory, "where the layers lie"),),
        "formula: llama.cpp's own allocation, computed before anything is downloaded"
        if c.plan.basis == "formula"
        else c.plan.basis,
    )


def _budget(c: Candidate) -> Figure:
    own = c.plan.device
    filled = []
    if own.limit_bytes is not None and own.bytes is not None:
        filled.append(f"{gib(own.limit_bytes)} − {gib(own.margin_bytes)} = {gib(own.bytes)}")
    for part in c.plan.parts[1:]:
        known = gib(part.budget) if part.budget is not None else "not known, so not judged"
        filled.append(f"{part.memory} memory beside it: {known}")
    return Figure(
        "budget",
        "Memory budget",
        gib(own.bytes),
        "memory that an engine can use − a margin that stays free (1 GiB, or an eighth of a "
        "small memory)",
        tuple(filled),
        (
            Input("usable memory", gib(own.limit_bytes), f"{own.basis}; {c.device.source}"),
            Input("nominal memory", gib(c.device.memory_bytes), c.device.source),
        ),
        own.basis,
    )


def _weights(c: Candidate, table: Weights) -> Figure:
    parts = [
        ("token embeddings", table.embedding),
        (f"{len(table.layers)} layers", sum(table.layers)),
    ]
    if table.output:
        parts.append(("output", table.output))
    again = c.plan.weights - table.total
    if again:
        parts.append(("embeddings once more, as the output on the device", again))
    where = [f"{p.memory}: {amount(p.weights)}" for p in c.plan.parts]
    return Figure(
        "weights",
        "Weights",
        gib(c.plan.weights),
        "bytes of every tensor: values ÷ values in a block × bytes of a block, rounded up to 32",
        (total(parts), "; ".join(where)) if len(where) > 1 else (total(parts),),
        (
            Input("parameters", plain(c.card.params), "the model's entry in the catalogue"),
            Input("file type", c.filetype.id, "llama-quantize's rules for which tensor gets what"),
            Input("layers", plain(len(table.layers)), "the model's config"),
        ),
        "exact to the byte",
    )


def _kv(c: Candidate, table: Weights) -> Figure:
    plan, s = c.plan, table.shape
    rows = kv.layers(s, plan.kv_type, plan.n_ctx, plan.users)
    counts = Counter((r.k, r.v, r.cells, r.state) for r in rows)
    filled, whole = [], 0
    for (k, v, cells, state), n in counts.items():
        if k or v:
            size = n * (k + v) * cells
            filled.append(
                f"{n} layers × ({k:,} B keys + {v:,} B values) × {cells:,} cells = {amount(size)}"
            )
            whole += size
        if state:
            filled.append(f"{n} recurrent layers × {state:,} B of state = {amount(n * state)}")
            whole += n * state
    if whole != plan.kv:
        filled = []
    elif len(filled) > 1:
        filled.append(f"together {amount(whole)} ({gib(whole)})")
    inputs = [
        Input("context", f"{plan.n_ctx:,} tokens, shared by {plan.users}", "asked for or chosen"),
        Input("cells", plain(kv.padded(plan.n_ctx)), f"the context in whole steps of {CELLS_STEP}"),
        Input("stored as", plan.kv_type, "the engine's default, or asked for"),
    ]
    if s.mla is not None:
        inputs.append(
            Input("latent row", f"{s.mla.kv_rank} + {s.mla.rope} values", "the model's config")
        )
    else:
        row = f"{s.n_head_kv} heads × {s.head_dim} values"
        inputs.append(Input("a layer's keys", row, "the model's config"))
    if any(s.windows):
        window = f"{max(s.windows):,} tokens in {sum(1 for w in s.windows if w)} layers"
        inputs.append(Input("sliding window", window, "the model's config"))
    return Figure(
        "kv",
        "KV cache",
        gib(plan.kv),
        "layers × (bytes of keys + bytes of values) × cells; a layer with a window keeps only "
        "the window",
        tuple(filled),
        tuple(inputs),
        "exact to the byte",
    )


def _compute(c: Candidate, table: Weights) -> Figure:
    plan, s = c.plan, table.shape
    copied = memory.output_bytes(s, plan.users)
    values = scratch.values_per_token(s, rotated="_" in plan.kv_type and s.mla is None)
    held = kv.cells(plan.n_ctx, plan.users, max(s.windows, default=0), N_UBATCH)
    mask = 2 * (held.full + (held.windowed if any(s.windows) else 0))
    filled = []
    for size in (plan.parts[0].compute, plan.parts[0].compute - copied):
        tokens, left = divmod(size, 4 * values + mask)
        if size > 0 and left == 0:
            filled.append(
                f"{tokens} tokens × ({values:,} values × 4 B + {mask:,} B of mask) = {amount(size)}"
            )
            break
    filled += [f"{p.memory}: {amount(p.compute)}" for p in plan.parts]
    return Figure(
        "compute",
        "Compute buffers",
        gib(plan.compute),
        "what one micro-batch keeps alive at once + one row of logits for each user, copied to "
        "the host",
        tuple(filled),
        (
            Input("micro-batch", f"{N_UBATCH} tokens", "llama.cpp's default"),
            Input("values per token", plain(values), SCRATCH_SOURCE),
            Input("logits", f"{s.n_vocab:,} × {plan.users} × 4 B = {amount(copied)}", "vocabulary"),
        ),
        "formula, within 3 % or 16 MiB of llama.cpp's dry loads",
    )


def _overhead(c: Candidate, table: Weights) -> Figure:
    plan = c.plan
    backend, basis = device_overhead(c.device)
    process = host_overhead(table.shape.n_vocab)
    parts = [("process", process)]
    if backend and plan.overhead - process - plan.packing == backend:
        parts.insert(0, ("backend", backend))
    if plan.packing:
        parts.append(("weights laid out anew for this CPU", plan.packing))
    adds_up = sum(size for _, size in parts) == plan.overhead
    return Figure(
        "overhead",
        "Overhead",
        gib(plan.overhead),
        "what the backend keeps for its context and kernels + the engine's process and vocabulary",
        (total(parts),) if adds_up else (amount(plan.overhead),),
        (
            Input("backend", amount(backend), basis),
            Input("process", amount(process), "measured on x86-64 Linux; 640 B a vocabulary entry"),
        ),
        basis,
    )


def _file(c: Candidate) -> Figure:
    known = c.card.header_bytes is not None
    return Figure(
        "file",
        "File on disk",
        format_bytes(c.file_bytes),
        "tensor data + header with the vocabulary",
        (amount(c.file_bytes),),
        (
            Input(
                "header",
                amount(c.card.header_bytes) if c.card.header_bytes is not None else UNKNOWN,
                "the vocabulary's own texts" if known else "not known: 40 B a vocabulary entry",
            ),
        ),
        "exact" if known else "tensors exact, header estimated",
    )


def _largest(c: Candidate, table: Weights) -> Figure:
    plan, most = c.plan, c.card.n_ctx_train * c.plan.users
    filled = []
    layers = plan.n_gpu_layers if c.device.memory_kind == "dedicated" else None

    def needs(n_ctx: int) -> int:
        found = memory.predict(
            c.card, c.device, table, n_ctx=n_ctx, users=plan.users, n_gpu_layers=layers,
            kv_type=plan.kv_type,
        )  # fmt: skip
        return found.parts[0].total

    if c.largest_ctx and plan.parts[0].budget is not None and c.verdict == "fits":
        filled.append(f"{c.largest_ctx:,} tokens need {gib(needs(c.largest_ctx))}")
        more = c.largest_ctx + CELLS_STEP
        if more > most:
            filled.append(f"{most:,} is what the model was trained on, for each user")
        else:
            filled.append(f"{more:,} would need {gib(needs(more))} of {gib(plan.device.bytes)}")
    return Figure(
        "largest_ctx",
        "Longest context",
        f"{c.largest_ctx:,} tokens" if c.largest_ctx else "none fits",
        f"the most cells, in steps of {CELLS_STEP}, whose memory stays within every budget",
        tuple(filled),
        (
            Input("at most", f"{most:,} tokens", "context in training × users"),
            Input("shared by", f"{plan.users} users", "one may take all of it up to its own limit"),
        ),
        "searched with the memory formula",
    )
