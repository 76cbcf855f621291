"""Which guessed tokens are worth computing. Pure: learns from steps, never touches a model.

A guessed ("draft") token costs one more row in a step and saves a step if it is right. Both sides
are measured: what rows cost on this machine, how often each source of guesses is right for each
request. A request also has a credit, in steps: what drafting has saved it so far, less what it
has cost. Drafts are paid from it, so text that cannot be guessed loses next to nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from edgekit_server.engine.costs import GUESS, StepCosts
from edgekit_server.engine.lookup import Lookup, Source

MOST_DRAFTS = 15
"""Per sequence and step; with its known token that makes 16 rows, a multiple of every tile."""
MOST_ROWS = 48
"""Draft rows of one step, all sequences together. Each needs a row of logits, see `n_outputs`."""
MOST_ACTIVE = 8
"""With more sequences a step is full already: the arithmetic of a row costs what it brings."""

MARGIN = 1.03
"""Drafts must promise this much more speed."""
FIRST_CREDIT = 0.75
INCOME = 0.004
"""Credit that each step without drafts brings, up to FIRST_CREDIT: how rarely it tries again."""
MOST_CREDIT = 8.0
PRIOR = {
    Source.SHORT: 0.5,
    Source.LONG: 0.7,
    Source.RESUMED: 0.6,
    Source.FOLLOWED: 0.95,
    Source.MODEL: 0.7,
}
"""Chance of a draft token, given that those before it were right: measured on code."""
PRIOR_WEIGHT = 2.0
KEEP = 0.9
"""Weight that older drafts keep at each new one."""
FADE = 0.98
"""The same at each chance not taken: a bad record fades, and the source is tried again."""


def n_outputs(n_seq_max: int, n_batch: int) -> int:
    """Return the rows of logits that a step with drafts may need.

    llama.cpp's buffer for them grows when they are first used: 4 B x n_vocab each. The compute
    buffer has room for that many rows (n_outputs x (4 B x n_vocab + 8 B x n_embd)) wherever that
    is less than the feed-forward's 4 B x n_ubatch x (3 n_ff + 4 n_embd), so mostly at no cost.
    """
    drafts = min(MOST_DRAFTS * min(n_seq_max, MOST_ACTIVE), MOST_ROWS)
    return max(n_seq_max, min(n_seq_max + drafts, n_batch))


class Drafter:
    """One request's guesses, and how they fare."""

    def __init__(self, tokens: array[int], limit: int) -> None:
        """`tokens` grows as the answer does, to `limit` at most."""
        self.tokens = tokens
        self._lookup = Lookup(tokens, limit)
        self._hits = dict.fromkeys(Source, 0.0)
        self._misses = dict.fromkeys(Source, 0.0)
        self.credit = FIRST_CREDIT
        self.n_drafted = self.n_accepted = 0
        self.source = Source.SHORT
        """Where the last draft came from."""

    def draft(self, most: int) -> array[int]:
        """Return up to `most` tokens that may come next."""
        found, self.source = self._lookup.draft(most)
        return found

    def chance(self) -> float:
        """Return the chance of each token of the last draft, if those before it are right."""
        hits, misses = self._hits[self.source], self._misses[self.source]
        return (hits + PRIOR_WEIGHT * PRIOR[self.source]) / (hits + misses + PRIOR_WEIGHT)

    def affordable(self, extra: Sequence[float], n_active: int, most: int) -> int:
        """Return the drafts whose whole cost, to all active sequences, the credit covers."""
        count = 0
        while count < most and n_active * extra[count + 1] <= self.credit:
            count += 1
        return count

    def idle(self) -> None:
        """Take note of a step without drafts."""
        if self.credit < FIRST_CREDIT:
            self.credit += INCOME

    def passed(self) -> None:
        """Take note of a draft that was not worth its rows."""
        self._hits[self.source] *= FADE
        self._misses[self.source] *= FADE
        self.idle()

    def learn(self, n_drafted: int, n_accepted: int, cost: float) -> None:
        """Take note of a draft's fate; `cost` in steps of one sequence."""
        source = self.source
        self._hits[source] = self._hits[source] * KEEP + n_accepted
        self._misses[source] = self._misses[source] * KEEP + (n_accepted < n_drafted)
        self.credit = min(self.credit + n_accepted - cost, MOST_CREDIT)
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted


def allot(
    wishes: Sequence[tuple[float, int]], n_active: int, extra: Sequence[float], per_round: float = 0
) -> list[int]:
    """Share rows out among drafts so that tokens per second are the most; 0s if none pays.

    `wishes`: per draft the chance of each token and its length. `extra`: see StepCosts.
    `per_round`: what a draft model's step costs, each token of the longest draft one.
    """
    steps = sorted(
        ((chance**n, n, i) for i, (chance, most) in enumerate(wishes) for n in range(1, most + 1)),
        key=lambda step: (-step[0], step[1]),
    )
    gained, longest = float(n_active), 0
    best, best_count = n_active * MARGIN, 0
    for count, (chance, n, _) in enumerate(steps[: len(extra) - 1], start=1):
        gained += chance
        longest = max(longest, n)
        speed = gained / (1.0 + extra[count] + per_round * longest)
        if speed > best:
            best, best_count = speed, count
    counts = [0] * len(wishes)
    for _, _, i in steps[:best_count]:
        counts[i] += 1
    return counts


class Wanting(Protocol):
    """What speculation needs of a request that is decoding."""

    key: int
    seq: int | None
    tokens: array[int]
    limit: int
    ends: frozenset[int]
    speculate: bool
    drafter: Drafter | None


class Model(Protocol):
    """A smaller model that guesses; see draft.py."""

    def draft(self, wanted: Sequence[tuple[int, array[int], int]]) -> list[array[int]]:
        """Return up to n tokens to follow each (sequence, tokens, n); empty: not this time."""

    @property
    def round_s(self) -> float:
        """Seconds that one more token for every draft takes, about; 0.0: not known yet."""


class Speculator:
    """Drafts for the requests of one engine, step by step."""

    def __init__(self, model: Model | None = None) -> None:
        self.costs = StepCosts()
        self._model = model

    def propose(self, requests: Sequence[Wanting], room: int) -> dict[int, array[int]]:
        """Return drafts by request key; `requests`: all that decode, `room`: rows there are."""
        n_active = len(requests)
        if not 0 < n_active <= MOST_ACTIVE or room <= 0 or not self.costs.knows(n_active):
            return {}
        if not self.costs.tried(n_active):
            room = 1  # a row may cost more than a step here: one is enough to find out
        extra = self.costs.added(n_active, MOST_ROWS)
        found: list[tuple[Wanting, Drafter, array[int], int]] = []
        for request in requests:
            drafter = drafter_of(request)
            if drafter is None:
                continue
            most = min(MOST_DRAFTS, room, request.limit - len(request.tokens) - 1)
            most = drafter.affordable(extra, n_active, most)
            draft = until(drafter.draft(most), request.ends) if most > 0 else array("i")
            n = len(draft)
            if self._model is not None and most > 0 and drafter.source is not Source.FOLLOWED:
                drafter.source, n = Source.MODEL, most
            if n:
                found.append((request, drafter, draft, n))
            else:
                drafter.idle()
        return self._share_out(found, n_active, extra[: room + 1]) if found else {}

    def _share_out(
        self,
        found: Sequence[tuple[Wanting, Drafter, array[int], int]],
        n_active: int,
        extra: Sequence[float],
    ) -> dict[int, array[int]]:
        per_round = self._per_round(n_active) if self._model is not None else 0.0
        counts = allot([(d.chance(), n) for _, d, _, n in found], n_active, extra, per_round)
        drafts: dict[int, array[int]] = {}
        asked: list[tuple[Wanting, int]] = []
        for (request, drafter, draft, _), n in zip(found, counts, strict=True):
            if not n:
                drafter.passed()
            elif drafter.source is Source.MODEL:
                asked.append((request, n))
            else:
                drafts[request.key] = draft[:n]
        if self._model is not None and asked:
            wanted = [(r.seq, r.tokens, n) for r, n in asked if r.seq is not None]
            for (request, _), draft in zip(asked, self._model.draft(wanted), strict=True):
                if draft := until(draft, request.ends):
                    drafts[request.key] = draft
        return drafts

    def _per_round(self, n_active: int) -> float:
        """Return the cost of a draft model's step, in steps of this many sequences."""
        assert self._model is not None
        step_s = self.costs.seconds(n_active)
        return self._model.round_s / step_s if step_s else GUESS

    def settle(
        self, n_rows: int, seconds: float | None, fates: Sequence[tuple[Drafter, int, int]]
    ) -> None:
        """Learn from a step of `n_rows` rows that were no prompt's.

        `seconds`: None when a prompt's rows were in it, too. `fates`: drafter, drafted and
        accepted tokens of each request that had drafts.
        """
        if seconds is not None and n_rows:
            self.costs.learn(n_rows, seconds)
        n_drafts = sum(n for _, n, _ in fates)
        if not n_drafts:
            return
        n_active = max(1, n_rows - n_drafts)
        per_row = n_active * self.costs.added(n_active, MOST_ROWS)[n_drafts] / n_drafts
        modelled = [n for drafter, n, _ in fates if drafter.source is Source.MODEL]
        per_model = n_active * self._per_round(n_active) * max(modelled) if modelled else 0.0
        for drafter, n, n_accepted in fates:
            share = per_model / len(modelled) if drafter.source is Source.MODEL else 0.0
            drafter.learn(n, n_accepted, n * per_row + share)


def drafter_of(request: Wanting) -> Drafter | None:
    """Return a request's drafter, made when first asked for; None if it wants no drafts."""
    if not request.speculate:
        return None
    if request.drafter is None or request.drafter.tokens is not request.tokens:
        request.drafter = Drafter(request.tokens, request.limit)
    return request.drafter


def until(draft: array[int], ends: frozenset[int]) -> array[int]:
    """Cut a draft before the first token that would end the answer: nothing comes after it."""
    for i, token in enumerate(draft):
        if token in ends:
            return draft[:i]
    return draft
