"""A smaller model that guesses the next tokens; its own context, the same sequence ids."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

import numpy as np

from edgekit_server.engine import native
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.prefix import common_prefix
from edgekit_server.errors import ConfigError

LEAST_SURE = 0.6
"""A draft ends where the draft model gives its best token less than this: llama-server's idea of
a cut; the value is a choice, not yet measured."""
NEAR = 32
"""Tokens that may be missing from the draft model's memory when it guesses. A prompt is caught
up with before, in pieces of one compute pass per step."""


class DraftModel:
    """Greedy guesses for many sequences at once. Belongs to the step thread.

    What its memory holds is compared with the request's tokens each time. So a new request, a
    rejected draft and a preemption need no word from anyone.
    """

    def __init__(self, context: native.Context) -> None:
        self._context = context
        self._batch = Batch(context.n_batch)
        self._held = [array("i") for _ in range(context.n_seq_max)]
        self.round_s = 0.0

    def draft(self, wanted: Sequence[tuple[int, array[int], int]]) -> list[array[int]]:
        """Return up to n tokens to follow each (sequence, tokens, n); empty: not this time."""
        drafts = {seq: array("i") for seq, _, _ in wanted}
        by_seq = sorted(wanted, key=lambda want: want[0])
        ready = [want for want in by_seq if self._missing(want[0], want[1]) <= NEAR]
        behind = [want for want in by_seq if self._missing(want[0], want[1]) > NEAR]
        if behind:
            self._catch_up(*behind[0][:2])
        parts = [(seq, tokens[len(self._held[seq]) :], n) for seq, tokens, n in ready]
        while parts:
            began = time.perf_counter()
            alone = all(len(part) == 1 for _, part, _ in parts)
            best = self._decode([(seq, part) for seq, part, _ in parts])
            if best is None:
                break
            if alone:
                self._learn(time.perf_counter() - began)
            parts = [
                (seq, array("i", [token]), n - 1)
                for (seq, _, n), (token, chance) in zip(parts, best, strict=True)
                if chance >= LEAST_SURE and n > 0
            ]
            for seq, part, _ in parts:
                drafts[seq] += part
            parts = [part for part in parts if part[2] > 0]
        return [drafts[seq] for seq, _, _ in wanted]

    def _learn(self, seconds: float) -> None:
        if not self.round_s:
            self.round_s = seconds
        self.round_s += 0.1 * (min(seconds, 3.0 * self.round_s) - self.round_s)

    def _missing(self, seq: int, tokens: array[int]) -> int:
        """Cut what is held down to the tokens' prefix; return how many are not in memory.

        At least one, since only a computed token has logits.
        """
        held = self._held[seq]
        common = min(common_prefix(held, tokens), len(tokens) - 1)
        if common < len(held):
            self._context.seq_rm(seq, common)
            del held[common:]
        return len(tokens) - common

    def _catch_up(self, seq: int, tokens: array[int]) -> None:
        """Compute one piece of what is missing."""
        start = len(self._held[seq])
        part = tokens[start : min(len(tokens) - 1, start + self._context.n_ubatch)]
        self._decode([(seq, part)])

    def _decode(self, parts: Sequence[tuple[int, array[int]]]) -> list[tuple[int, float]] | None:
        """Compute tokens, in order of sequence; return the best next one of each, with its
        probability. None: that failed, and nothing is held any more."""
        self._batch.clear()
        for seq, part in parts:
            self._batch.add(seq, len(self._held[seq]), part, output=True)
        code = self._context.decode(self._batch.ready())
        if code == 1 and self._drop_others({seq for seq, _ in parts}):
            code = self._context.decode(self._batch.ready())
        if code != 0:
            self._drop_others(set())
            return None
        for seq, part in parts:
            self._held[seq] += part
        logits = self._context.logits(len(parts))
        best = logits.argmax(axis=1)
        sums = np.exp(logits - logits[np.arange(len(parts)), best][:, None]).sum(axis=1)
        return [(int(token), 1.0 / float(total)) for token, total in zip(best, sums, strict=True)]

    def _drop_others(self, spared: set[int]) -> bool:
        """Empty all other sequences; False: they were empty."""
        dropped = False
        for seq, held in enumerate(self._held):
            if held and seq not in spared:
                self._context.seq_rm(seq)
                del held[:]
                dropped = True
        return dropped


def check(model: native.Model, pieces: Sequence[bytes], draft: native.Model, name: str) -> None:
    """Raise ConfigError unless `draft` can guess for `model`, whose token texts are `pieces`."""
    hint = "a draft model has the same vocabulary as its model, most often one of the same family"
    if draft.n_vocab != model.n_vocab:
        raise ConfigError(
            f"the draft model {name} has {draft.n_vocab} tokens, not {model.n_vocab}", hint=hint
        )
    for token, (own, other) in enumerate(zip(pieces, draft.pieces(), strict=True)):
        if own != other:
            raise ConfigError(
                f"token {token} is {own!r}, but {other!r} for the draft model {name}", hint=hint
            )
    if not draft.trims_exactly:
        raise ConfigError(
            f"the draft model {name} has a memory that cannot be cut after a wrong guess",
            hint="use a model with full attention only",
        )
