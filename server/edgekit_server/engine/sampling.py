"""From logits to tokens, one request's rows after the other's.

Greedy is numpy's argmax. A chain that cuts to its top_k works on a shortlist of the row; only
one that needs the whole row goes the slow way through llama_sampler_sample, in a pool. Each way
gives the tokens of the C chain over the whole row. Biases and grammar masks change the row
itself, before any of them, and logprobs are those of the raw row, as llama-server reports them.
What a request gets depends on its own rows, seed and past only, never on who else is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice

from edgekit_server.engine import native
from edgekit_server.engine.chooser import Chooser as Chooser
from edgekit_server.engine.chooser import Matcher as Matcher
from edgekit_server.engine.chooser import Way
from edgekit_server.engine.chooser import seed_for as seed_for
from edgekit_server.engine.logprobs import LogSoftmax
from edgekit_server.engine.pool import Pool
from edgekit_server.engine.shortlist import Shortlist, shortlist
from edgekit_server.engine.wire import TopToken

POOL_FROM = 1 << 18
"""Logits that chains have to go through in one step from which threads save time: two rows of
128k tokens, eight of 32k. Below it, waking the threads costs as much as they save."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request's rows of a step: that of its last known token, then those of its drafts."""

    chooser: Chooser
    row: int
    """Batch row of the last known token; the drafts' rows follow it, all with outputs."""
    drafts: Sequence[int] = ()

    @property
    def n_rows(self) -> int:
        return 1 + len(self.drafts)


@dataclass(slots=True)
class Choice:
    """One drawn token; `token` is None when the row held no usable number."""

    token: int | None
    logprob: TopToken | None = None
    top: list[TopToken] = field(default_factory=list)


def choose(
    context: native.Context,
    asks: Sequence[Ask],
    pieces: Sequence[bytes],
    pool: Pool | None = None,
) -> list[list[Choice]]:
    """Draw tokens for each ask; asks in the batch's order, no other rows with outputs between.

    Each answer ends with the first token that is not its draft, so it has one to
    len(drafts) + 1 choices. A seeded chain draws once per choice, so drafts change no text.
    """
    logits = context.logits(sum(ask.n_rows for ask in asks))
    jobs: list[_Job] = []
    first = 0
    for ask in asks:
        jobs.append(_Job(context, ask, logits[first : first + ask.n_rows], pieces))
        first += ask.n_rows
    _look_ahead(logits, jobs)
    slow = [job for job in jobs if job.chooser.way is Way.WHOLE]
    if pool is None or sum(job.rows.size for job in slow) < POOL_FROM:
        return [job.run() for job in jobs]
    answers = dict(zip(map(id, slow), pool.map(_Job.run, slow), strict=True))
    return [answers[id(job)] if id(job) in answers else job.run() for job in jobs]


def _look_ahead(logits: native.Logits, jobs: Sequence[_Job]) -> None:
    """Find the largest of every row, in one go for neighbours that need as many."""
    start = 0
    for (way, top), group in groupby(jobs, key=lambda job: (job.chooser.way, job.chooser.top)):
        run = list(group)
        end = start + sum(len(job.rows) for job in run)
        if way is Way.GREEDY:
            largest = iter(logits[start:end].argmax(axis=1).tolist())
            for job in run:
                job.largest = list(islice(largest, len(job.rows)))
        elif way is Way.SHORT:
            for job in run:
                job.lists = [shortlist(row, top) for row in job.rows]
        start = end


class _Job:
    """The rows of one ask on their way to choices."""

    def __init__(
        self, context: native.Context, ask: Ask, rows: native.Logits, pieces: Sequence[bytes]
    ) -> None:
        self._context, self._ask, self._pieces = context, ask, pieces
        self.chooser, self.rows = ask.chooser, rows
        self.largest: list[int] = []
        self.lists: list[Shortlist] = []
        n_top = self.chooser.n_logprobs
        self._softmaxes = [] if n_top is None else [LogSoftmax(row, n_top) for row in rows]
        self.chooser.bias(rows)

    def run(self) -> list[Choice]:
        """Draw until a draft is wrong, the drafts are through, or the grammar has ended."""
        choices: list[Choice] = []
        drafts, matcher = self._ask.drafts, self.chooser.matcher
        way = self.chooser.way
        draw = self._greedy if way is Way.GREEDY else self._short
        if way is Way.WHOLE:
            draw = self._whole
        for n in range(len(self.rows)):
            token = draw(n)
            choices.append(self._choice(n, token))
            if token is None:
                break
            if matcher is not None:
                matcher.accept(token)
                if matcher.stopped:
                    break
            if n == len(drafts) or token != drafts[n]:
                break
        return choices

    def _choice(self, n: int, token: int | None) -> Choice:
        if token is None or not self._softmaxes:
            return Choice(token)
        softmax = self._softmaxes[n]
        return Choice(token, softmax.entry(token, self._pieces), softmax.top(self._pieces))

    def _greedy(self, n: int) -> int | None:
        """Take the largest; if the grammar forbids it, the largest that may come."""
        row, token = self.rows[n], self.largest[n]
        if math.isfinite(row[token]) and self._forbids(token):
            self._mask(n)
            token = int(row.argmax())
        # NaN wins an argmax.
        return token if math.isfinite(row[token]) else None

    def _short(self, n: int) -> int | None:
        """Draw from the shortlist; if the grammar forbids the token, mask and draw again.

        llama-server does the same. Tokens that may come keep their chances relative to one
        another; only top_k, top_p and the like may have cut by the unmasked row.
        """
        row, chooser, best = self.rows[n], self.chooser, self.lists[n]
        if best.tied and not best.broken:
            return self._whole(n)
        token = None if best.broken else chooser.draw(row, best)
        if token is not None and self._forbids(token):
            self._mask(n)
            best = shortlist(row, chooser.top)
            if best.tied and not best.broken:
                return chooser.draw_whole(self._context, self._ask.row + n)
            token = None if best.broken else chooser.draw(row, best)
        if token is not None:
            chooser.took(token)
        return token

    def _whole(self, n: int) -> int | None:
        """Let C draw from the whole row, masked first: C's draw cannot be taken back."""
        self._mask(n)
        if not math.isfinite(self.rows[n].max()):  # a sort over NaN may leave the array
            return None
        return self.chooser.draw_whole(self._context, self._ask.row + n)

    def _forbids(self, token: int) -> bool:
        return self.chooser.matcher is not None and not self.chooser.matcher.allows(token)

    def _mask(self, n: int) -> None:
        if self.chooser.matcher is not None:
            self.chooser.matcher.mask_row(self.rows[n])
