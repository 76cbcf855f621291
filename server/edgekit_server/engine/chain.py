"""A request's sampler chain as plain data, in llama-server's order (common/sampling.cpp).

Samplers at a neutral value are left out; what is left gives the same tokens. logit_bias, first
in llama-server's chain, is added to the row before the chain sees it.
"""

from __future__ import annotations

from edgekit_server.engine.chains import Sampler
from edgekit_server.engine.parameters import Sampling

MIROSTAT_M = 100
"""Tokens from which Mirostat 1 estimates its s; llama-server's constant."""
XTC_OFF_ABOVE = 0.5
LONGEST_HISTORY = 256
"""Past tokens up to which a shortlist takes them all along."""


def has_penalties(sampling: Sampling) -> bool:
    """Whether repeat, frequency or presence penalties change the row."""
    return sampling.repeat_last_n != 0 and (
        sampling.repeat_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def has_dry(sampling: Sampling) -> bool:
    """Whether DRY changes the row."""
    return sampling.dry_multiplier > 0 and sampling.dry_penalty_last_n != 0


def history(sampling: Sampling, n_ctx: int) -> int:
    """Return how many past tokens the chain looks at."""
    if sampling.mirostat:
        return 0
    penalties = _window(sampling.repeat_last_n, n_ctx) if has_penalties(sampling) else 0
    return max(penalties, _window(sampling.dry_penalty_last_n, n_ctx) if has_dry(sampling) else 0)


def is_plain_greedy(sampling: Sampling) -> bool:
    """Whether the answer is the row's largest logit: only samplers that never remove it.

    Typical-p and XTC may remove it, penalties and DRY lower it, dynamic temperature may raise
    a temperature of 0. Mirostat at temperature 0 has one candidate left.
    """
    if sampling.temperature > 0:
        return False
    return bool(sampling.mirostat) or not (
        has_penalties(sampling)
        or has_dry(sampling)
        or _has_xtc(sampling)
        or sampling.typical_p < 1.0
        or sampling.dynatemp_range > 0
    )


def samplers(sampling: Sampling, *, n_vocab: int, n_ctx: int, seed: int) -> list[Sampler]:
    """Return the chain in order; its last sampler selects."""
    if sampling.mirostat:
        return _mirostat(sampling, n_vocab, seed)
    keep = min(sampling.min_keep, n_vocab)
    chain: list[Sampler] = []
    if has_penalties(sampling):
        window = _window(sampling.repeat_last_n, n_ctx)
        penalties = (
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        chain.append(("penalties", (n_vocab, window, *penalties)))
    if has_dry(sampling):
        window = _window(sampling.dry_penalty_last_n, n_ctx)
        lengths = (sampling.dry_allowed_length, window)
        breakers = tuple(text.encode() for text in sampling.dry_sequence_breakers)
        chain.append(("dry", (sampling.dry_multiplier, sampling.dry_base, *lengths, breakers)))
    if sampling.top_n_sigma > 0:
        chain.append(("top_n_sigma", (sampling.top_n_sigma,)))
    if sampling.top_k > 0:
        chain.append(("top_k", (min(sampling.top_k, n_vocab),)))
    if sampling.typical_p < 1.0:
        chain.append(("typical", (sampling.typical_p, keep)))
    if sampling.top_p < 1.0:
        chain.append(("top_p", (sampling.top_p, keep)))
    if sampling.min_p > 0.0:
        chain.append(("min_p", (sampling.min_p, keep)))
    if _has_xtc(sampling):
        chain.append(("xtc", (sampling.xtc_probability, sampling.xtc_threshold, keep, seed)))
    dynamic = (max(sampling.dynatemp_range, 0.0), sampling.dynatemp_exponent)
    chain.append(("temp_ext", (sampling.temperature, *dynamic)))
    chain.append(("dist", (seed,)))
    return chain


def shortlist_size(sampling: Sampling, n_ctx: int) -> int | None:
    """Return how many of a row's largest logits decide together with the past tokens' own.

    That is so when the chain cuts to top_k by logits that only past tokens' penalties have
    changed: each past token may push one of the others out. None: the chain needs the row.
    """
    past = history(sampling, n_ctx)
    if sampling.mirostat or sampling.top_n_sigma > 0 or sampling.top_k <= 0:
        return None
    return sampling.top_k + past if past <= LONGEST_HISTORY else None


def _mirostat(sampling: Sampling, n_vocab: int, seed: int) -> list[Sampler]:
    targets = (sampling.mirostat_tau, sampling.mirostat_eta)
    last: Sampler = ("mirostat_v2", (seed, *targets))
    if sampling.mirostat == 1:
        last = ("mirostat", (n_vocab, seed, *targets, MIROSTAT_M))
    return [("temp", (sampling.temperature,)), last]


def _has_xtc(sampling: Sampling) -> bool:
    return sampling.xtc_probability > 0 and sampling.xtc_threshold <= XTC_OFF_ABOVE


def _window(last_n: int, n_ctx: int) -> int:
    """Bound a look-back by the context: C allocates this many; < 0 asks for all of it."""
    return min(last_n, n_ctx) if last_n >= 0 else n_ctx
