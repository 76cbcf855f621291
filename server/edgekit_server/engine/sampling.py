"""From logits to tokens: greedy in numpy, everything else through a C chain.

Biases and grammar masks change the row itself, before either way, and logprobs are those of
the raw row, as llama-server reports them. A request's choices depend on its own rows, seed and
past only, never on what else is in the batch.
"""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.chain import (
    has_penalties,
    is_plain_greedy,
    penalty_window,
    samplers,
)
from edgekit_server.engine.logprobs import LogSoftmax
from edgekit_server.engine.wire import Sampling, TopToken


class Matcher(Protocol):
    """What may come next in one answer. A `constrain` grammar; one request owns it."""

    def mask_row(self, row: native.Logits) -> None:
        """Set the logits of tokens that may not come next to minus infinity, in place."""

    def allows(self, token: int) -> bool:
        """Whether a token may come next; cheap."""

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed."""

    def forced(self) -> list[int]:
        """Return the tokens that must come next, in order; empty when there is a choice."""

    @property
    def stopped(self) -> bool:
        """Whether nothing more may come: the answer ends."""


def seed_for(seed: int | None) -> int:
    """Return a 32-bit seed: the caller's folded to that size, or a fresh one for None and < 0."""
    if seed is None or seed < 0:
        return secrets.randbelow(native.RANDOM_SEED)
    return (seed ^ (seed >> 32)) % native.RANDOM_SEED


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
        matcher: Matcher | None = None,
    ) -> None:
        """`forbidden` ids are never drawn. The chain sees the prompt's tail for penalties."""
        self.n_logprobs = sampling.n_logprobs
        self.matcher = matcher
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
        """Free what C holds; the chooser draws no more."""
        if self.chain is not None:
            self.chain.close()
            self.chain = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request's rows of a step: that of its last known token, then those of its drafts."""

    chooser: Chooser
    row: int
    """Batch row of the last known token; the drafts' rows follow it, all with outputs."""
    drafts: Sequence[int] = ()


@dataclass(slots=True)
class Choice:
    """One drawn token; `token` is None when the row held no usable number."""

    token: int | None
    logprob: TopToken | None = None
    top: list[TopToken] = field(default_factory=list)


def choose(
    context: native.Context, asks: Sequence[Ask], pieces: Sequence[bytes]
) -> list[list[Choice]]:
    """Draw tokens for each ask; asks in the batch's order, no other rows with outputs between.

    Each answer ends with the first token that is not its draft, so it has one to
    len(drafts) + 1 choices. A seeded chain draws once per choice, so drafts change no text.
    """
    logits = context.logits(sum(1 + len(ask.drafts) for ask in asks))
    largest: list[int] | None = None
    if all(ask.chooser.chain is None for ask in asks):
        plain = all(c.bias_ids is None and c.matcher is None for c in (a.chooser for a in asks))
        largest = logits.argmax(axis=1).tolist() if plain else None
    answers: list[list[Choice]] = []
    first = 0
    for ask in asks:
        choices: list[Choice] = []
        for n in range(1 + len(ask.drafts)):
            at = first + n
            known = None if largest is None else largest[at]
            choice = _choose_one(context, ask.chooser, ask.row + n, logits[at], pieces, known)
            choices.append(choice)
            matcher = ask.chooser.matcher
            if n == len(ask.drafts) or choice.token != ask.drafts[n]:
                break
            if matcher is not None and matcher.stopped:
                break
        answers.append(choices)
        first += 1 + len(ask.drafts)
    return answers


def _choose_one(
    context: native.Context,
    chooser: Chooser,
    batch_row: int,
    row: native.Logits,
    pieces: Sequence[bytes],
    largest: int | None,
) -> Choice:
    """Draw one token from one row; `largest`: its argmax, if that is known to be the answer."""
    softmax = None if chooser.n_logprobs is None else LogSoftmax(row, chooser.n_logprobs)
    token = largest
    if token is None:
        if chooser.bias_ids is not None:
            row[chooser.bias_ids] += chooser.bias
        if chooser.matcher is not None:
            chooser.matcher.mask_row(row)
        chain = chooser.chain
        token = int(row.argmax()) if chain is None else context.sample(chain, batch_row)
    # NaN wins an argmax, and a chain over NaN returns some token: both are a broken row.
    if not math.isfinite(row[token]):
        return Choice(None)
    if chooser.matcher is not None:
        chooser.matcher.accept(token)
    if softmax is None:
        return Choice(token)
    return Choice(token, softmax.entry(token, pieces), softmax.top(pieces))
