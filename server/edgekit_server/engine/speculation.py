"""Guessing ahead: whether, with what, and why. Sets up speculate.py and draft.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgekit_server.config import EngineConfig
from edgekit_server.engine import draft, native
from edgekit_server.engine.log import Log
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.speculate import MOST_ACTIVE, MOST_DRAFTS, Speculator, n_outputs
from edgekit_server.errors import ConfigError, ModelMissingError

MODES = ("auto", "off", "draft")


def check(config: EngineConfig) -> None:
    """Raise ConfigError or ModelMissingError for settings that do not go together."""
    if config.speculation not in MODES:
        raise ConfigError(f"speculation {config.speculation!r} is none of {', '.join(MODES)}")
    if (config.speculation == "draft") != (config.draft_model is not None):
        raise ConfigError(
            "speculation 'draft' needs a draft_model, and nothing else uses one",
            hint="name a small GGUF with the same vocabulary",
        )
    if config.draft_model is not None and not config.draft_model.is_file():
        raise ModelMissingError(f"no file {config.draft_model}")


def outputs_max(config: EngineConfig) -> int | None:
    """Return ContextOptions.n_outputs_max for these settings."""
    if config.speculation == "off":
        return None
    return n_outputs(config.n_seq_max, config.n_batch)


@contextmanager
def opened(
    config: EngineConfig,
    options: ContextOptions,
    model: native.Model,
    pieces: Sequence[bytes],
    log: Log,
) -> Iterator[tuple[Speculator | None, str]]:
    """Yield what guesses for this model, None if nothing does, and the reason.

    Loads the draft model where there is one, and frees it at the end. Raises ConfigError or
    BadModelError if that cannot be.
    """
    check(config)
    if config.speculation == "off":
        yield None, "off, as configured"
        return
    if not model.trims_exactly:
        if config.speculation == "draft":
            raise ConfigError(
                "speculation 'draft' needs a model whose memory can be cut after a wrong guess",
                hint="this one has sliding windows or recurrent layers: use speculation 'auto'",
            )
        yield None, "off: this model's memory cannot be cut after a wrong guess"
        return
    spare_bytes = 4 * model.n_vocab * (options.n_outputs - options.n_seq_max)
    cost = (
        f"up to {MOST_DRAFTS} tokens per sequence and step, with at most {MOST_ACTIVE} sequences, "
        f"where measured to pay; the logits take up to {spare_bytes / 2**20:.1f} MiB for it"
    )
    if config.draft_model is None:
        yield Speculator(), f"prompt lookup: {cost}"
        return
    name = config.draft_model.name
    draft_options = ContextOptions(
        n_ctx=options.n_ctx,
        n_seq_max=options.n_seq_max,
        n_batch=options.n_batch,
        n_ubatch=options.n_ubatch,
        n_threads=options.n_threads,
        type_k=options.type_k,
        type_v=options.type_v,
        flash_attn=options.flash_attn,
    )
    model_options = ModelOptions(config.draft_model, config.n_gpu_layers, config.use_extra_bufts)
    with native.opened(model_options, draft_options, log) as (small, context):
        draft.check(model, pieces, small, name)
        yield Speculator(draft.DraftModel(context)), f"draft model {name}, prompt lookup: {cost}"
