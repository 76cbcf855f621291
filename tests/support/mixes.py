"""Random mixes of requests, the same for a seed: what arrives when, and what becomes of it.

One mix is data; `play` sends it through a real loop, on the simulated context or on llama.cpp.
Checks that need no model are made here after every step.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from edgekit_server.engine.loop import Loop
from edgekit_server.engine.native import Logits
from edgekit_server.engine.request import Request
from edgekit_server.engine.sampling import Chooser
from edgekit_server.engine.wire import Output, Sampling, Step

STEP_S = 0.01
"""What a step takes on the simulated clock, and as much again for each 32 rows."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One HTTP request: `n` answers to one prompt."""

    step: int
    """Before which step it arrives."""
    prompt: tuple[int, ...]
    n_answer: int
    n: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    rule: int | None = None
    """Seed of a grammar."""
    cache: bool = True
    speculate: bool = True
    cancel_after: int | None = None
    """Steps after arrival at which the client leaves."""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """Settings of an engine, and what comes at it."""

    seed: int
    n_ctx: int
    n_seq_max: int
    n_batch: int
    n_ubatch: int
    unified: bool
    reuse: bool
    speculates: bool
    stores: bool
    crowded: bool
    """Whether everything is let in at once, so that running ones must give way."""
    wishes: tuple[Wish, ...]


def make(seed: int, *, n_vocab: int, n_wishes: int = 10, scale: int = 1) -> Mix:
    """Return the mix of a seed. `scale` lengthens prompts, answers and memory together."""
    rng = random.Random(seed)
    n_seq_max = rng.choice([1, 2, 3, 4, 6])
    unified = rng.random() < 0.75
    n_ubatch = rng.choice([4, 8, 16, 32])
    n_batch = max(n_seq_max, n_ubatch) * rng.choice([1, 2, 4])
    n_ctx = rng.choice([64, 96, 160, 320]) * scale
    if not unified:
        n_ctx *= n_seq_max
    longest = n_ctx if unified else n_ctx // n_seq_max
    systems = [_tokens(rng, n_vocab, longest // 2) for _ in range(2)]
    wishes = []
    step = 0
    for _ in range(rng.randrange(2, n_wishes + 1)):
        step += rng.choice([0, 0, 0, 1, 2, 5, 20])
        wishes.append(_wish(rng, step, systems, longest, n_vocab, scale))
    return Mix(
        seed=seed,
        n_ctx=n_ctx,
        n_seq_max=n_seq_max,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        unified=unified,
        reuse=rng.random() < 0.9,
        speculates=rng.random() < 0.5,
        stores=rng.random() < 0.5,
        crowded=rng.random() < 0.3,
        wishes=tuple(wishes),
    )


def _tokens(rng: random.Random, n_vocab: int, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(8, n_vocab) for _ in range(n))


def _wish(
    rng: random.Random,
    step: int,
    systems: list[tuple[int, ...]],
    longest: int,
    n_vocab: int,
    scale: int,
) -> Wish:
    shared = rng.choice([(), *systems])
    tail = _tokens(rng, n_vocab, rng.choice([1, 1, 3, 9, 30, longest // 2]))
    if rng.random() < 0.2:  # a text that repeats itself: drafts are right here
        tail = (tail * 4)[: longest // 2]
    prompt = (*shared, *tail)[: longest - 1]
    sampling = Sampling(temperature=0.0)
    if rng.random() < 0.25:
        sampling = Sampling(seed=rng.randrange(100), temperature=0.9)
    if rng.random() < 0.2:
        sampling = replace(sampling, n_logprobs=rng.choice([0, 3]))
    if rng.random() < 0.1:
        sampling = replace(sampling, logit_bias={rng.randrange(8, n_vocab): 4.0})
    return Wish(
        step=step,
        prompt=prompt,
        n_answer=rng.choice([0, 1, 2, 5, 12, 25, 40]) * scale,
        n=rng.choice([1, 1, 1, 1, 2, 3]),
        sampling=sampling,
        rule=rng.randrange(1000) if rng.random() < 0.2 else None,
        cache=rng.random() < 0.85,
        speculate=rng.random() < 0.9,
        cancel_after=rng.randrange(0, 15) if rng.random() < 0.15 else None,
        deadline_s=rng.choice([0.0, 0.05, 0.3]) if rng.random() < 0.1 else None,
    )


class Rule:
    """A grammar made of remainders: which tokens may come, runs that must, and an end."""

    def __init__(self, seed: int, n_vocab: int) -> None:
        rng = random.Random(seed)
        self._n_vocab = n_vocab
        self._modulus = rng.choice([2, 3])
        self._run = [rng.randrange(8, n_vocab) for _ in range(rng.choice([0, 0, 2, 5]))]
        self._run_at = rng.randrange(0, 6)
        self._most = rng.choice([3, 10, 1000])
        self._n = 0

    def _allowed(self) -> list[int]:
        if forced := self.forced():
            return forced[:1]
        return [t for t in range(8, self._n_vocab) if t % self._modulus == self._n % self._modulus]

    def mask_row(self, row: Logits) -> None:
        kept = {t: row[t] for t in self._allowed()}
        row[:] = float("-inf")
        for token, value in kept.items():
            row[token] = value

    def allows(self, token: int) -> bool:
        return token in self._allowed()

    def accept(self, token: int) -> None:
        assert self.allows(token), f"{token} was not allowed"
        self._n += 1

    def forced(self) -> list[int]:
        if self._run_at <= self._n < self._run_at + len(self._run):
            return self._run[self._n - self._run_at :][: self._most - self._n]
        return []

    error: str | None = None

    @property
    def stopped(self) -> bool:
        return self._n >= self._most


@dataclass
class Played:
    """What came of a mix."""

    mix: Mix
    loop: Loop
    requests: list[Request]
    wishes: list[Wish]
    """Per request: the wish it came from."""
    outputs: dict[int, list[Output]]
    n_steps: int
    unserved: Counter[int]
    """By request id: the most steps in a row that a running one got no row, or a waiting one
    was not started though nothing else ran."""

    def tokens(self, request: Request) -> list[int]:
        return [token for output in self.outputs[request.id] for token in output.tokens]

    def finish(self, request: Request) -> str | None:
        found = [o.finish for o in self.outputs[request.id] if o.finish is not None]
        assert len(found) == 1, f"request {request.id} ended {len(found)} times: {found}"
        assert self.outputs[request.id][-1].finish is not None, "an output after the last"
        return found[0]


def play(
    mix: Mix,
    make_loop: Callable[[Callable[[Step], None], Callable[[], float]], Loop],
    make_matcher: Callable[[int], Any],
    *,
    n_ctx_seq: int,
    ends: frozenset[int],
    vocab: object | None = None,
    n_vocab: int,
    after_step: Callable[[Loop], None] = lambda loop: None,
) -> Played:
    """Run a mix to its end. AssertionError if it does not come to one."""
    now = [0.0]
    outputs: dict[int, list[Output]] = defaultdict(list)

    def emit(step: Step) -> None:
        assert step.outputs
        for output in step.outputs:
            outputs[output.id].append(output)

    loop = make_loop(emit, lambda: now[0])
    if mix.crowded:
        loop.admission.fits = lambda *_: True  # type: ignore[method-assign]
    played = Played(mix, loop, [], [], outputs, 0, Counter())
    waiting = sorted(mix.wishes, key=lambda wish: wish.step)
    cancels: list[tuple[int, int]] = []
    silent: Counter[int] = Counter()
    bound = _most_steps(mix, n_ctx_seq)
    while True:
        step = played.n_steps
        for wish in [w for w in waiting if w.step <= step]:
            waiting.remove(wish)
            for choice in range(wish.n):
                request = _request(
                    len(played.requests), wish, choice, now[0], n_ctx_seq, ends, vocab, n_vocab,
                    make_matcher,
                )  # fmt: skip
                played.requests.append(request)
                played.wishes.append(wish)
                loop.submit(request)
                if wish.cancel_after is not None:
                    cancels.append((step + wish.cancel_after, request.id))
        for at, request_id in cancels:
            if at == step:
                loop.cancel(request_id)
        before = {r.id: len(r.tokens) for r in loop.admission.running.values()}
        computed = {r.id: loop.admission.computed(r) for r in loop.admission.running.values()}
        more = loop.step()
        _note_silence(played, silent, loop, before, computed)
        after_step(loop)
        played.n_steps += 1
        rows = loop._batch.n_rows
        now[0] += STEP_S * (1 + rows / 32)
        if not (more or waiting):
            return played
        assert played.n_steps < bound, f"seed {mix.seed}: not done after {bound} steps"


def _request(
    number: int,
    wish: Wish,
    choice: int,
    now: float,
    n_ctx_seq: int,
    ends: frozenset[int],
    vocab: object | None,
    n_vocab: int,
    make_matcher: Callable[[int], Any],
) -> Request:
    """Make a request as the intake does."""
    tokens = array("i", wish.prompt)
    sampling = wish.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + choice)
    matcher = None if wish.rule is None else make_matcher(wish.rule)
    chooser = Chooser(
        sampling, tokens, n_vocab=n_vocab, n_ctx=n_ctx_seq, vocab=vocab, matcher=matcher
    )
    return Request(
        id=number,
        tokens=tokens,
        limit=min(len(tokens) + wish.n_answer, n_ctx_seq),
        chooser=chooser,
        arrived=now,
        ends=ends,
        cache_prompt=wish.cache,
        speculate=wish.speculate,
        deadline=None if wish.deadline_s is None else now + wish.deadline_s,
    )


def _note_silence(
    played: Played,
    silent: Counter[int],
    loop: Loop,
    before: dict[int, int],
    computed: dict[int, int],
) -> None:
    """Count how long each running request has got nothing."""
    running = {r.id: r for r in loop.admission.running.values()}
    for request_id, request in running.items():
        grew = len(request.tokens) > before.get(request_id, -1)
        moved = loop.admission.computed(request) != computed.get(request_id, -1)
        if grew or moved:
            del silent[request_id]
        else:
            silent[request_id] += 1
            played.unserved[request_id] = max(played.unserved[request_id], silent[request_id])
    for request_id in [i for i in silent if i not in running]:
        del silent[request_id]


def _most_steps(mix: Mix, n_ctx_seq: int) -> int:
    """Return a bound for any schedule that computes something useful at each step.

    A step gives the oldest running request at least one row, so each token is paid for at most
    once per preemption, and a request is preempted only by older ones.
    """
    total = 0
    for wish in mix.wishes:
        most = min(len(wish.prompt) + wish.n_answer, n_ctx_seq)
        total += wish.n * (most + 4)
    return total + max(wish.step for wish in mix.wishes) + 50
