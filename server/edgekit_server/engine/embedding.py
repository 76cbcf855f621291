"""How this model makes vectors: the choice, its reason, and the context for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgekit_server.config import EngineConfig
from edgekit_server.engine import native, wire
from edgekit_server.engine.embed import Shape
from edgekit_server.engine.options import ContextOptions
from edgekit_server.engine.pooled import Facts
from edgekit_server.errors import ConfigError

CHOICES = ("mean", "cls", "last", "none")
"""What may be configured; `rank` is the model's own."""
MOST_SEQUENCES = 16
WHOLE_ROWS = 512
"""Rows that short texts are packed into. llama.cpp reserves a row of logits for each, wanted or
not: a quarter of a GiB with 128k tokens."""
LAST_ROWS = 32
"""Output rows of a pass that ends texts: so many spare a short text a pass of its own."""
STEP = 256
"""llama.cpp rounds the cells of a context up to this."""


def is_encoder(model: native.Model, facts: Facts) -> bool:
    """Whether a model has no KV memory and makes nothing but vectors."""
    return not (facts.causal or facts.diffuses or model.has_encoder)


def choose(
    config: EngineConfig, facts: Facts, n_ctx_train: int, *, encoder: bool
) -> tuple[Shape, str]:
    """Return the shape and why. Raises ConfigError for a pooling that does not exist. Pure."""
    if config.pooling is not None and config.pooling not in CHOICES:
        raise ConfigError(f"pooling {config.pooling!r} is none of {', '.join(CHOICES)}")
    if config.embed_ctx < 1:
        raise ConfigError(f"embed_ctx is {config.embed_ctx}; it must be at least 1")
    if config.pooling is not None:
        pooling, why = config.pooling, "as configured"
    elif facts.pooling is not None and facts.pooling != "none":
        pooling, why = facts.pooling, "as the model says"
    else:
        pooling = "mean" if encoder else "last"
        kind = "an encoder" if encoder else "a decoder, whose last token has seen all"
        why = f"the model does not say, and it is {kind}"
    whole = encoder or not facts.causal or pooling in ("mean", "cls")
    n_ctx = min(config.embed_ctx, n_ctx_train)
    if whole and not encoder:  # every row has an output, and the context must hold them
        n_ctx = min(n_ctx, max(config.n_ubatch, 1))
    n_rows = min(WHOLE_ROWS, n_ctx) if whole else min(config.n_ubatch, _padded(n_ctx))
    n_seq = min(MOST_SEQUENCES, n_rows)
    shape = Shape(
        pooling=pooling,
        whole=whole,
        n_out=facts.n_scores if pooling == "rank" else facts.n_embd,
        n_ctx=n_ctx,
        n_rows=n_rows,
        n_outputs=max(n_ctx, n_rows) if whole else max(n_seq, min(LAST_ROWS, n_rows)),
        n_seq=n_seq,
    )
    return shape, f"{pooling}: {why}; texts of up to {n_ctx} tokens"


def context_options(shape: Shape, base: ContextOptions) -> ContextOptions:
    """Return the options of the context that makes the vectors."""
    rows = max(shape.n_rows, shape.n_ctx) if shape.whole else shape.n_rows
    return replace(
        base,
        n_ctx=_padded(max(shape.n_ctx, shape.n_seq)),
        n_seq_max=shape.n_seq,
        n_batch=rows,
        n_ubatch=rows,
        n_outputs_max=shape.n_outputs,
        kv_unified=True,
        pooling=shape.pooling,
    )


def hello(shape: Shape, facts: Facts, pieces: Sequence[bytes]) -> wire.Vectors:
    """Return what the front has to know."""

    def text(token: int | None) -> str | None:
        return None if token is None else pieces[token].decode("utf-8", "replace")

    eos = facts.ends[0] if facts.adds_eos else None
    return wire.Vectors(
        pooling=shape.pooling,
        n_out=shape.n_out,
        n_ctx=shape.n_ctx,
        eos=text(eos),
        sep=text(facts.ends[-1] if facts.adds_sep else None),
        rank_end=text(facts.pair_end),
        rank_template=facts.rank_template,
    )


def _padded(n: int) -> int:
    return -(-n // STEP) * STEP
