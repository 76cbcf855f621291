"""A context that is full and goes on, for those who asked for it."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine.wire import Generate, Sampling
from tests.support.child import GREEDY, child, settings
from tests.support.engine import driver
from tests.support.gguf_kinds import write_recurrent

PROMPT = np.random.default_rng(9).integers(8, 264, 60).tolist()


@pytest.mark.parametrize("unified", [True, False])
def test_an_answer_longer_than_the_context(tiny_model: Path, unified: bool) -> None:
    with driver(tiny_model, exact=True, n_ctx=512, n_seq_max=2, unified=unified) as engine:
        shared = engine.context.n_ctx_seq
        plain = engine.submit(PROMPT, 1000, cache=False)
        engine.run()
        assert len(engine.tokens(plain)) == shared - 60
        request = engine.submit(PROMPT, 1000, shift_at=shared, cache=False)
        engine.run()
        assert engine.finish(request) == "length"
        assert len(engine.tokens(request)) == 1000
        assert engine.tokens(request)[: shared - 60] == engine.tokens(plain)
        assert engine.loop.table.used_cells() == 0


def test_the_moved_part_stays_near_to_a_fresh_computation(tiny_model: Path) -> None:
    """One layer's keys are rotated, not computed again: text may differ, nothing breaks. What
    is kept for others afterwards is only what was never moved."""
    with driver(tiny_model, exact=True, n_ctx=256, n_seq_max=2) as engine:
        request = engine.submit(PROMPT, 400, shift_at=256)
        engine.run()
        assert len(engine.tokens(request)) == 400
        (resident,) = [r for r in engine.loop.table.residents if r.tokens]
        assert resident.tokens == array("i", PROMPT)
        again = engine.submit([*PROMPT, 9], 20)
        engine.run()
        assert engine.outputs[again][0].n_cached == 60
        assert engine.tokens(again) == engine.alone([*PROMPT, 9], 20)


def test_cells_that_others_share_are_not_moved(tiny_model: Path) -> None:
    """Two choices of one prompt longer than what is kept: the first to be full computes its
    part again, and the other never notices."""
    prompt = (PROMPT * 4)[:200]
    with driver(tiny_model, exact=True, n_ctx=1024, n_seq_max=2) as engine:
        alone = engine.alone(prompt, 300)
        moved: list[int] = []
        real = engine.context.seq_add
        engine.context.seq_add = (  # type: ignore[method-assign]
            lambda seq, start, delta: (moved.append(seq), real(seq, start, delta))[1]  # type: ignore[func-returns-value]
        )
        shifting = engine.submit(prompt, 200, Sampling(temperature=1.0, seed=1), shift_at=256)
        steady = engine.submit(prompt, 300)
        engine.run()
        assert engine.tokens(steady) == alone
        assert len(engine.tokens(shifting)) == 200
        # The first shift found the prompt shared; the later ones move what was computed since.
        assert moved
        assert len(moved) < 200 / 96


def test_memory_without_positions_computes_again(tmp_path: Path) -> None:
    path = write_recurrent(tmp_path / "state.gguf")
    with driver(path, exact=True, n_ctx=512, n_seq_max=2) as engine:
        request = engine.submit(PROMPT, 300, shift_at=128)
        engine.run()
        assert len(engine.tokens(request)) == 300
        tokens = engine.tokens(request)
        # After the shift at 128 tokens it is a fresh sequence of 32 + 48: check one such step.
        seen = [*PROMPT, *tokens[:68]]
        rest = [*seen[:32], *seen[32 + 48 :]]
        assert tokens[68 : 68 + 10] == engine.alone(rest, 10)


def test_only_when_asked(tiny_model: Path) -> None:
    """And only up to a number of tokens: without one, the context is the end of it."""
    with child(settings(tiny_model, n_ctx=256, n_seq_max=2)) as engine:
        engine.next()
        for number, (asked, most, n) in enumerate(
            [(False, 400, 196), (True, 400, 400), (True, None, 196), (True, 10, 10)]
        ):
            answer = engine.answer(
                Generate(number, PROMPT, most, True, sampling=GREEDY, context_shift=asked)
            )
            assert sum(len(output.tokens) for output in answer) == n
            assert answer[-1].finish == "length"
