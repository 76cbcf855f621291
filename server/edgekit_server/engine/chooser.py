"""How one request draws its tokens: by argmax, from a shortlist, or from the whole row."""

from __future__ import annotations

import math
import secrets
from array import array
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import numpy as np

from edgekit_server.engine import chain, native
from edgekit_server.engine.chains import Chain
from edgekit_server.engine.parameters import Sampling
from edgekit_server.engine.shortlist import Shortlist, suits


class Matcher(Protocol):
    """What may come next in one answer; owned by one request."""

    def mask_row(self, row: native.Logits) -> None:
        """Set the logits of tokens that may not come next to minus infinity, in place."""

    def allows(self, token: int) -> bool:
        """Whether a token may come next; far cheaper than a mask."""

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed."""

    def forced(self) -> list[int]:
        """Return the tokens that must come next, in order; empty when there is a choice."""

    @property
    def stopped(self) -> bool:
        """Whether nothing more may come: the answer ends."""

    @property
    def error(self) -> str | None:
        """Why the answer cannot go on, if its mask has just forbidden all there is."""


class Way(Enum):
    """What of a row a request's draw needs."""

    GREEDY = "its largest logit"
    SHORT = "its largest few"
    WHOLE = "all of it"


def seed_for(seed: int | None) -> int:
    """Return a 32-bit seed: the caller's folded to that size, or a fresh one for None and < 0."""
    if seed is None or seed < 0:
        return secrets.randbelow(native.RANDOM_SEED)
    return (seed ^ (seed >> 32)) % native.RANDOM_SEED


class Chooser:
    """One request's biases, grammar and chain. `chain` is None for plain greedy."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: array[int],
        *,
        n_vocab: int,
        n_ctx: int,
        forbidden: Sequence[int] = (),
        matcher: Matcher | None = None,
        vocab: object | None = None,
    ) -> None:
        """`forbidden` ids are never drawn; `vocab` is Model.vocab, which DRY needs.

        The chain sees the prompt's tail, for penalties. Preparing DRY takes about 5 ms per
        sequence breaker with 128k tokens.
        """
        self.n_logprobs = sampling.n_logprobs
        self.matcher = matcher
        ids = [*sampling.logit_bias, *forbidden]
        self._bias_ids = np.array(ids, np.int64)
        values = [*sampling.logit_bias.values(), *([-math.inf] * len(forbidden))]
        self._bias = np.array(values, np.float32)
        self.way = Way.GREEDY
        self.chain: Chain | None = None
        self.top = 0
        """Logits that a shortlist must have for the chain."""
        self._past: deque[int] = deque(maxlen=0)
        if chain.is_plain_greedy(sampling):
            return
        seed = seed_for(sampling.seed)
        samplers = chain.samplers(sampling, n_vocab=n_vocab, n_ctx=n_ctx, seed=seed)
        self.chain = native.chain(samplers, vocab)
        n_past = chain.history(sampling, n_ctx)
        top = chain.shortlist_size(sampling, n_ctx)
        self.way = Way.WHOLE
        if top is not None and suits(n_vocab, top):
            self.way, self.top = Way.SHORT, top
            self._past = deque(maxlen=n_past)
            self._candidates = native.candidates(top + n_past)
        for token in prompt[-n_past:] if n_past else ():
            self.took(token)

    def close(self) -> None:
        """Free what C holds; the chooser draws no more."""
        if self.chain is not None:
            self.chain.close()
            self.chain = None

    def bias(self, rows: native.Logits) -> None:
        """Add the biases to rows of logits, in place."""
        if len(self._bias_ids):
            rows[:, self._bias_ids] += self._bias

    def draw(self, row: native.Logits, shortlist: Shortlist) -> int | None:
        """Draw with the chain from an untied shortlist of a row; `took` is up to the caller.

        Only past tokens' logits change before the chain cuts to the largest, so these and the
        past tokens are all that can be among the largest then.
        """
        ids, logits = shortlist.ids, shortlist.logits
        if self._past:
            past = np.array(sorted(set(self._past).difference(ids.tolist())), np.int64)
            past = past[row[past] > -np.inf]
            ids, logits = np.concatenate((ids, past)), np.concatenate((logits, row[past]))
        table = self._candidates.table
        table["id"][: len(ids)] = ids
        table["logit"][: len(ids)] = logits
        return self._living().draw(self._candidates, len(ids), falling=not self._past)

    def draw_whole(self, context: native.Context, batch_row: int) -> int:
        """Draw with the chain from a whole row, which must have a finite maximum, and take it."""
        token = context.sample(self._living(), batch_row)
        self._past.append(token)
        return token

    def took(self, token: int) -> None:
        """Let the chain know of a token, for its penalties."""
        self._living().accept(token)
        self._past.append(token)

    def _living(self) -> Chain:
        if self.chain is None:
            raise ValueError("a greedy or closed chooser has no chain to draw with")
        return self.chain
