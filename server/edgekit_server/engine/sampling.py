"""From logits to one token per row: greedy in numpy, everything else through a C chain.

The chain has llama-server's samplers in llama-server's order (common/sampling.cpp), without
those at a neutral value. Biases are added to the row itself, before either way, and logprobs
are those of the raw row, as llama-server reports them.
"""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.wire import Sampling, TopToken

Sampler = tuple[str, tuple[float, ...]]
PROBABILITY_FLOOR = -9999.0
"""Stands for minus infinity in a logprob; JSON has no infinity (OpenAI sends this figure)."""


def seed_for(seed: int | None) -> int:
    """Return a 32-bit seed: the caller's folded to that size, or a fresh one for None and < 0."""
    if seed is None or seed < 0:
        return secrets.randbelow(native.RANDOM_SEED)
    return (seed ^ (seed >> 32)) % native.RANDOM_SEED


def has_penalties(sampling: Sampling) -> bool:
    """Whether past tokens change the row."""
    return sampling.repeat_last_n != 0 and (
        sampling.repeat_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def penalty_window(sampling: Sampling, n_ctx: int) -> int:
    """Return how many past tokens count; < 0 asks for the context. C allocates this many."""
    return min(sampling.repeat_last_n, n_ctx) if sampling.repeat_last_n >= 0 else n_ctx


def is_plain_greedy(sampling: Sampling) -> bool:
    """Whether the answer is the row's largest logit. Typical-p may remove even that one."""
    return sampling.temperature <= 0 and not has_penalties(sampling) and sampling.typical_p >= 1.0


def samplers(sampling: Sampling, *, n_vocab: int, n_ctx: int, seed: int) -> list[Sampler]:
    """Return the chain as data: (llama_sampler_init_ suffix, arguments), in order."""
    chain: list[Sampler] = []
    if has_penalties(sampling):
        last_n = penalty_window(sampling, n_ctx)
        penalties = (
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        chain.append(("penalties", (n_vocab, last_n, *penalties)))
    if sampling.top_k > 0:
        chain.append(("top_k", (min(sampling.top_k, n_vocab),)))
    if sampling.typical_p < 1.0:
        chain.append(("typical", (sampling.typical_p, 0)))
    if sampling.top_p < 1.0:
        chain.append(("top_p", (sampling.top_p, 0)))
    if sampling.min_p > 0.0:
        chain.append(("min_p", (sampling.min_p, 0)))
    chain.append(("temp_ext", (sampling.temperature, 0.0, 1.0)))
    chain.append(("dist", (seed,)))
    return chain


class Chooser:
    """How one request draws its tokens. `chain` is None for plain greedy."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: array[int],
        *,
        n_vocab: int,
        n_ctx: int,
        forbidden: Sequence[int] = (),
    ) -> None:
        """`forbidden` ids are never drawn. The chain sees the prompt's tail for penalties."""
        self.n_logprobs = sampling.n_logprobs
        ids = [*sampling.logit_bias, *forbidden]
        self.bias_ids = np.array(ids, np.int64) if ids else None
        values = [*sampling.logit_bias.values(), *([-math.inf] * len(forbidden))]
        self.bias = np.array(values, np.float32)
        self.chain: native.Chain | None = None
        if not is_plain_greedy(sampling):
            seed = seed_for(sampling.seed)
            chain = samplers(sampling, n_vocab=n_vocab, n_ctx=n_ctx, seed=seed)
            self.chain = native.Chain(chain)
            if has_penalties(sampling):
                for token in prompt[-penalty_window(sampling, n_ctx) :]:
                    self.chain.accept(token)

    def close(self) -> None:
        if self.chain is not None:
            self.chain.close()
            self.chain = None


@dataclass(slots=True)
class Choice:
    """One drawn token; `token` is None when the row held no usable number."""

    token: int | None
    logprob: TopToken | None = None
    top: list[TopToken] = field(default_factory=list)


def choose(
    context: native.Context, rows: Sequence[tuple[Chooser, int]], pieces: Sequence[bytes]
) -> list[Choice]:
    """Draw one token per row. `rows`: chooser and batch row, in the batch's order of outputs."""
    logits = context.logits(len(rows))
    raw = [
        _LogSoftmax(logits[i], chooser.n_logprobs) if chooser.n_logprobs is not None else None
        for i, (chooser, _) in enumerate(rows)
    ]
    for i, (chooser, _) in enumerate(rows):
        if chooser.bias_ids is not None:
            logits[i, chooser.bias_ids] += chooser.bias
    if all(chooser.chain is None for chooser, _ in rows):
        tokens = logits.argmax(axis=1).tolist()
    else:
        tokens = [
            context.sample(chooser.chain, row) if chooser.chain else int(logits[i].argmax())
            for i, (chooser, row) in enumerate(rows)
        ]
    choices: list[Choice] = []
    for i, token in enumerate(tokens):
        # NaN wins an argmax, and a chain over NaN returns some token: both are a broken row.
        if not math.isfinite(logits[i, token]):
            choices.append(Choice(None))
            continue
        softmax = raw[i]
        if softmax is None:
            choices.append(Choice(token))
        else:
            choices.append(Choice(token, softmax.entry(token, pieces), softmax.top(pieces)))
    return choices


class _LogSoftmax:
    """Log-probabilities of one row, taken before biases change it."""

    def __init__(self, row: native.Logits, n_top: int) -> None:
        self._row = row.copy()
        peak = float(self._row.max())
        self._total = peak + math.log(float(np.exp(self._row - peak).sum()))
        self._n_top = min(n_top, len(row))

    def entry(self, token: int, pieces: Sequence[bytes]) -> TopToken:
        logprob = float(self._row[token]) - self._total
        return TopToken(token, pieces[token], max(logprob, PROBABILITY_FLOOR))

    def top(self, pieces: Sequence[bytes]) -> list[TopToken]:
        """Most likely tokens, best first; equal ones by id."""
        if self._n_top <= 0:
            return []
        best = np.argpartition(self._row, -self._n_top)[-self._n_top :]
        ordered = best[np.lexsort((best, -self._row[best]))]
        return [self.entry(int(token), pieces) for token in ordered]
