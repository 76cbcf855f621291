"""Unified KV memory or one stream per sequence: the choice, with its reason. Pure.

Unified: every sequence may take any cell, so one request can use the whole context, and a
prefix that several share is held once, at no cost. Streams: each sequence has its own equal
share, and attention looks at that share only, which is faster with many sequences, but a
request can never be longer than the share and a shared prefix is copied cell by cell.
"""

from __future__ import annotations

from edgekit_server.errors import ConfigError

MODES = ("auto", "unified", "streams")
FEW = 8
"""Up to this many sequences, scanning the others' cells costs less than streams' split steps."""
STEP = 256
"""llama.cpp rounds the cells of a sequence up to this."""


def choose(
    mode: str, *, n_ctx: int, n_seq_max: int, n_ctx_train: int, cuts_anywhere: bool
) -> tuple[bool, str]:
    """Return (unified, reason).

    `auto` never takes context away: whoever planned n_ctx counts on one request being able to
    use it. So streams are taken only when the share of a sequence is all the model can use.
    Raises ConfigError for a mode that does not exist or shares of nothing.
    """
    if mode not in MODES:
        raise ConfigError(f"kv_mode {mode!r} is none of {', '.join(MODES)}")
    share = stream_share(n_ctx, n_seq_max)
    if mode == "streams":
        return False, f"streams, as configured: {share} tokens for each of {n_seq_max} sequences"
    shared = "sequences share all cells, and a common prefix is held once"
    if mode == "unified":
        return True, f"unified, as configured: {shared}"
    if n_seq_max <= FEW:
        return True, f"unified: {shared}"
    if not cuts_anywhere:
        return True, f"unified: {shared}; this model's prefixes cannot be copied between streams"
    if share < n_ctx_train:
        return True, (
            f"unified: {shared}; {n_seq_max} streams would hold {share} tokens each, "
            f"and the model can use {n_ctx_train}"
        )
    return False, (
        f"streams: {n_seq_max} sequences, each with {share} tokens of its own, "
        f"all the model can use ({n_ctx_train})"
    )


def stream_share(n_ctx: int, n_seq_max: int) -> int:
    """Return the cells of one sequence when memory is split (llama-context.cpp rounds so)."""
    share = n_ctx // n_seq_max
    return -(-share // STEP) * STEP
