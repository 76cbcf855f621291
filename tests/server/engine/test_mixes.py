"""A thousand random mixes through the real loop on a simulated memory that checks every call."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from functools import partial

import pytest

from edgekit_server.engine import scheduler
from edgekit_server.engine.checkpoints import Kind
from edgekit_server.engine.hostcache import HostCache
from edgekit_server.engine.loop import Loop
from edgekit_server.engine.scheduler import HALVING_S, Work
from edgekit_server.engine.speculate import Speculator, n_outputs
from edgekit_server.engine.wire import Step
from tests.support import mixes
from tests.support.mixes import Mix, Played, Rule, Wish
from tests.support.simulated import (
    END,
    LOGITS,
    N_VOCAB,
    VOCABULARY,
    SimulatedContext,
    state_after,
)

N_MIXES = 1000
BLOCK = 50


class SeededPace:
    """Chunk sizes as a clock might make them, but the same for a seed."""

    def __init__(self, seed: int, most: int) -> None:
        self._rng = random.Random(seed)
        self._most = most

    def rows(self) -> int:
        return self._rng.choice([self._most, max(1, self._most // 2), self._most])

    def alone(self, n_batch: int) -> int:
        return n_batch

    def learn(self, rows: int, seconds: float, *, decoding: bool) -> None:
        pass


def _play(mix: Mix) -> tuple[Played, SimulatedContext]:
    memory = 3 if mix.seed % 3 == 0 else None
    context = SimulatedContext(
        n_ctx=mix.n_ctx,
        n_seq_max=mix.n_seq_max,
        n_batch=mix.n_batch,
        n_ubatch=mix.n_ubatch,
        unified=mix.unified,
        n_outputs_max=n_outputs(mix.n_seq_max, mix.n_batch) if mix.speculates else None,
        memory=memory,
    )

    def make_loop(emit: Callable[[Step], None], clock: Callable[[], float]) -> Loop:
        loop = Loop(
            context,  # type: ignore[arg-type]
            VOCABULARY,
            emit,
            reuse=mix.reuse,
            max_queue=100,
            speculator=Speculator() if mix.speculates else None,
            kind=Kind(unified=mix.unified),
            store=HostCache(4000) if mix.stores else None,
            clock=clock,
        )
        loop._pace = SeededPace(mix.seed, mix.n_ubatch)  # type: ignore[assignment]
        return loop

    def after_step(loop: Loop) -> None:
        table = loop.table
        for resident in table.residents:
            assert resident.tokens.tolist() == context.held(resident.seq)
        if mix.unified:
            assert table.used_cells() == context.used()
        owners = {r.owner: r.seq for r in table.residents if r.owner is not None}
        assert owners == {key: r.seq for key, r in loop.admission.running.items()}

    played = mixes.play(
        mix,
        make_loop,
        partial(Rule, n_vocab=N_VOCAB),
        n_ctx_seq=context.n_ctx_seq,
        ends=VOCABULARY.ends,
        n_vocab=N_VOCAB,
        after_step=after_step,
    )
    return played, context


def _alone(wish: Wish, limit: int, memory: int | None) -> list[int]:
    """What a greedy answer must be, from the definition."""
    tokens = array("i", wish.prompt)
    rule = None if wish.rule is None else Rule(wish.rule, N_VOCAB)
    while len(tokens) < limit and not (rule and rule.stopped):
        row = LOGITS[state_after(tokens, memory)].copy()
        for token, bias in wish.sampling.logit_bias.items():
            row[token] += bias
        if rule is not None:
            rule.mask_row(row)
        token = int(row.argmax())
        if token == END:
            break
        if rule is not None:
            rule.accept(token)
        tokens.append(token)
    return tokens[len(wish.prompt) :].tolist()


def _check(mix: Mix) -> tuple[Played, SimulatedContext]:
    played, context = _play(mix)
    memory = 3 if mix.seed % 3 == 0 else None
    for request, wish in zip(played.requests, played.wishes, strict=True):
        finish, tokens = played.finish(request), played.tokens(request)
        early = wish.cancel_after is not None or wish.deadline_s is not None
        assert finish in (
            ("stop", "length", "cancelled", "timeout") if early else ("stop", "length")
        )
        outputs = played.outputs[request.id]
        assert sum(o.n_cached is not None for o in outputs) == 1
        if wish.sampling.n_logprobs is not None:
            assert all(len(o.logprobs) == len(o.tokens) for o in outputs)
        if wish.sampling.temperature == 0:
            expected = _alone(wish, request.limit, memory)
            assert tokens == (expected if finish in ("stop", "length") else expected[: len(tokens)])
    # Nobody that runs is passed over for long: the shortest goes first, but only for a while.
    assert max(played.unserved.values(), default=0) <= 200
    # Nothing is left behind.
    table = played.loop.table
    assert all(resident.owner is None for resident in table.residents)
    while table.drop_oldest_idle():
        pass
    assert context.used() == 0
    assert all(not resident.tokens for resident in table.residents)
    return played, context


@pytest.mark.parametrize("block", range(N_MIXES // BLOCK))
def test_mixes(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        try:
            _check(mixes.make(seed, n_vocab=N_VOCAB))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def test_the_mixes_are_worth_it() -> None:
    """Everything that they are to mix does happen in them."""
    seen: set[str] = set()
    for seed in range(120):
        mix = mixes.make(seed, n_vocab=N_VOCAB)
        played, context = _check(mix)
        loop = played.loop
        seen |= {f"finish {played.finish(r)}" for r in played.requests}
        seen |= {"preempted"} if loop.admission.n_preempted else set()
        seen |= {"accepted drafts"} if loop.n_accepted else set()
        seen |= {"wrong drafts"} if loop.n_drafted > loop.n_accepted else set()
        first = [o.n_cached for outs in played.outputs.values() for o in outs if o.n_cached]
        seen |= {"cached"} if first else set()
        seen |= {"restored"} if context.n_loads else set()
        seen |= {f"unified {mix.unified}", f"reuse {mix.reuse}"}
    assert seen >= {
        "finish stop", "finish length", "finish cancelled", "finish timeout", "preempted",
        "accepted drafts", "wrong drafts", "cached", "restored", "unified True",
        "unified False", "reuse True", "reuse False",
    }  # fmt: skip


@pytest.mark.parametrize("n_long", [40, 500, 8000])
def test_a_long_prompt_is_not_starved_by_short_ones(n_long: int) -> None:
    """New short prompts at every step for ever: the long one gets its rows all the same."""
    now, step_s, n_ubatch = 0.0, 0.05, 32
    remaining, first_s = n_long, None
    key = 1
    while remaining:
        works = [Work(0, 0, remaining, False, now)]
        for seq in range(1, 8):  # each finished the step before: all new
            works.append(Work(key, seq, n_ubatch, seq == 7, 0.0))
            key += 1
        works[-1] = Work(key, 7, 1, True, 0.0)
        for chunk in scheduler.plan(works, n_batch=64, n_alone=64, n_mixed=n_ubatch):
            if chunk.key == 0:
                remaining -= chunk.count
                first_s = now if first_s is None else first_s
        now += step_s
        assert now < 1000
    # log2 of how much longer it is, in halvings; then it goes first.
    assert first_s is not None
    assert first_s <= HALVING_S * 8 + 0.1
    assert now - first_s <= (n_long / (n_ubatch - 1) + 2) * step_s
