"""Random mixes on llama.cpp: nothing leaks, everything ends, and company changes no text.

The tiny model has F32 weights, so a row's arithmetic does not depend on the rows beside it, and
a greedy answer equals the same request's answer alone, token for token, but for ties closer than
rounding. How close that is depends on attention. Plain attention over F32 cells sums in F32:
logprobs moved by 4e-6 nats at most. Flash attention, llama.cpp's default, sums the values in F16
on the CPU: a prompt in other chunks, or in other cells, has logprobs that differ by up to 4e-3
nats (the engine's README has figures for other weights). Each answer that differs is checked
against that bound.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edgekit_server.engine import native, vocabulary
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.checkpoints import Kind
from edgekit_server.engine.hostcache import HostCache
from edgekit_server.engine.loop import Loop
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.speculate import Speculator, n_outputs
from edgekit_server.engine.wire import Step
from tests.support import mixes
from tests.support.mixes import Mix, Played, Rule, Wish

N_VOCAB = 272
CLOSE = {False: 1e-4, True: 2e-2}
"""Nats between the best two tokens below which rounding may decide, by flash attention."""


def _loop(
    mix: Mix,
    model: native.Model,
    context: native.Context,
    tables: vocabulary.Vocabulary,
    emit: Callable[[Step], None],
    clock: Callable[[], float],
) -> Loop:
    return Loop(
        context,
        tables,
        emit,
        reuse=mix.reuse,
        max_queue=100,
        speculator=Speculator() if mix.speculates else None,
        kind=Kind(unified=mix.unified),
        store=HostCache(1 << 20) if mix.stores else None,
        clock=clock,
    )


def _check(mix: Mix, path: Path) -> int:
    """Play a mix and each of its requests alone; return how many answers a near tie turned."""
    flash = mix.seed % 2 == 1
    options = ContextOptions(
        type_k="f16" if flash else "f32",
        type_v="f16" if flash else "f32",
        flash_attn=flash,
        n_ctx=mix.n_ctx,
        n_seq_max=mix.n_seq_max,
        n_batch=mix.n_batch,
        n_ubatch=mix.n_ubatch,
        n_threads=1,
        kv_unified=mix.unified,
        n_outputs_max=n_outputs(mix.n_seq_max, mix.n_batch) if mix.speculates else None,
    )
    log = native.capture_log()
    with native.opened(ModelOptions(path, 0), options, log) as (model, context):
        tables = vocabulary.read(model)

        def after_step(loop: Loop) -> None:
            for resident in loop.table.residents:
                assert context.seq_length(resident.seq) == len(resident.tokens)

        def play(mix: Mix) -> Played:
            return mixes.play(
                mix,
                partial(_loop, mix, model, context, tables),
                partial(Rule, n_vocab=N_VOCAB),
                n_ctx_seq=context.n_ctx_seq,
                ends=tables.ends,
                vocab=model.vocab,
                n_vocab=N_VOCAB,
                after_step=after_step,
            )

        played = play(mix)
        _emptied(played.loop, context)
        n_turned = 0
        for request, wish in zip(played.requests, played.wishes, strict=True):
            finish = played.finish(request)
            early = wish.cancel_after is not None or wish.deadline_s is not None
            assert finish in ("stop", "length") or (early and finish in ("cancelled", "timeout"))
            if wish.sampling.temperature > 0:
                continue
            tokens = played.tokens(request)
            own, closeness = _alone(mix, wish, play)
            _emptied(played.loop, context)
            own = own if finish in ("stop", "length") else own[: len(tokens)]
            if tokens != own:
                at = next(i for i, (a, b) in enumerate(zip(tokens, own, strict=False)) if a != b)
                assert closeness[at] < CLOSE[flash], (
                    f"request {request.id}, token {at}: {closeness[at]}"
                )
                n_turned += 1
        return n_turned


def _alone(mix: Mix, wish: Wish, play: Callable[[Mix], Played]) -> tuple[list[int], list[float]]:
    """Return the tokens of a wish that has the engine to itself, and how close each was."""
    sampling = replace(wish.sampling, n_logprobs=2)
    single = replace(
        wish, step=0, n=1, cache=False, cancel_after=None, deadline_s=None, sampling=sampling
    )
    played = play(replace(mix, wishes=(single,), speculates=False, stores=False))
    (request,) = played.requests
    outputs = played.outputs[request.id]
    tops = [top for output in outputs for top in output.top_logprobs]
    return played.tokens(request), [top[0].logprob - top[1].logprob for top in tops]


def _emptied(loop: Loop, context: native.Context) -> None:
    """Nothing is held when all that was kept is dropped: a whole context fits in."""
    assert all(resident.owner is None for resident in loop.table.residents)
    while loop.table.drop_oldest_idle():
        pass
    lengths = [context.seq_length(seq) for seq in range(context.n_seq_max)]
    assert lengths == [0] * context.n_seq_max
    batch = Batch(context.n_batch)
    start = 0
    while start < context.n_ctx_seq:
        count = min(context.n_batch, context.n_ctx_seq - start)
        batch.clear()
        batch.add(0, start, array("i", [9] * count), output=False)
        assert context.decode(batch.ready()) == 0, f"{start} of {context.n_ctx_seq} cells"
        start += count
    context.seq_rm(0)


def _checked(seeds: range, path: Path) -> None:
    n_turned = 0
    for seed in seeds:
        mix = mixes.make(seed, n_vocab=N_VOCAB, scale=4)
        try:
            n_turned += _check(mix, path)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert n_turned <= len(seeds) / 10, f"{n_turned} near ties turned: that is no chance"


@pytest.mark.parametrize("block", range(4))
def test_real_mixes(tiny_model: Path, block: int) -> None:
    _checked(range(block * 5, block * 5 + 5), tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_hundred_more_real_mixes(tiny_model: Path, block: int) -> None:
    _checked(range(1000 + block * 10, 1010 + block * 10), tiny_model)
