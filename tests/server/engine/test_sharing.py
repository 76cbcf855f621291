"""Many prompts with one beginning, at one time: it is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine.sharing import PATIENCE, Owner, awaited
from edgekit_server.engine.wire import Sampling
from tests.support.engine import Driver, driver

RNG = np.random.default_rng(8)
SYSTEM = RNG.integers(8, 264, 192).tolist()
"""Three batches of 64: with a part of one left, the others would not wait for so few."""
TAILS = [RNG.integers(8, 264, 5 + i).tolist() for i in range(6)]


@pytest.mark.parametrize(
    ("n_cached", "owners", "key"),
    [
        (0, [], None),
        (0, [Owner(1, 100, 0)], 1),
        (0, [Owner(1, 100, 100)], None),  # past it: what can be had is to be had now
        (70, [Owner(1, 100, 80)], None),  # not worth it
        (68, [Owner(1, 100, 80)], 1),
        (0, [Owner(1, 31, 0)], None),
        (0, [Owner(1, 100, 0), Owner(2, 150, 0)], 2),
        (0, [Owner(1, 100, 0, PATIENCE), Owner(2, 50, 0)], 2),  # the first is stuck
        (0, [Owner(1, 100, 0, PATIENCE)], None),
        (0, [Owner(1, 100, 0), Owner(2, 100, 60)], 2),  # nearer to the end of the common part
        (0, [Owner(2, 100, 0), Owner(1, 100, 0)], 1),
    ],
)
def test_whom_to_wait_for(n_cached: int, owners: list[Owner], key: int | None) -> None:
    found = awaited(n_cached, owners)
    assert (None if found is None else found.key) == key


@contextmanager
def counted(engine: Driver) -> Iterator[list[int]]:
    """Count the rows of each decode."""
    rows: list[int] = []
    real = engine.context.decode

    def decode(batch: object) -> int:
        rows.append(batch.n_tokens)  # type: ignore[attr-defined]
        return real(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.context, "decode", decode)
        yield rows


@pytest.mark.parametrize("unified", [True, False])
def test_a_common_beginning_is_computed_once(tiny_model: Path, unified: bool) -> None:
    with driver(
        tiny_model, n_seq_max=6, n_ctx=3072, n_batch=64, unified=unified, exact=True
    ) as engine:
        alone = [engine.alone([*SYSTEM, *tail], 8) for tail in TAILS]
        with counted(engine) as rows:
            ids = [engine.submit([*SYSTEM, *tail], 8) for tail in TAILS]
            engine.run()
        assert [engine.tokens(i) for i in ids] == alone
        assert [engine.outputs[i][0].n_cached for i in ids] == [0, *[192] * 5]
        n_tails = sum(len(tail) for tail in TAILS)
        assert sum(rows) == 192 + n_tails + 6 * 7  # the first answer token is drawn with the tail


def test_choices_of_one_prompt_share_it(tiny_model: Path) -> None:
    with driver(tiny_model, n_batch=64) as engine, counted(engine) as rows:
        hot = [Sampling(temperature=1.5, seed=i) for i in range(4)]
        ids = [engine.submit([*SYSTEM, 9], 6, sampling) for sampling in hot]
        engine.run()
        assert len({tuple(engine.tokens(i)) for i in ids}) > 1
        assert sum(rows) == 193 + 3 + 4 * 5


def test_one_that_waits_keeps_its_place(tiny_model: Path) -> None:
    """Two ids: the first computes, the second waits for it, the third has no id."""
    with driver(tiny_model, n_seq_max=2, n_batch=64) as engine:
        first = engine.submit([*SYSTEM, 9], 8)
        second = engine.submit([*SYSTEM, 10], 8)
        third = engine.submit([30, 31], 8)
        engine.loop.step()
        assert [r.id for r in engine.loop.admission.running.values()] == [first]
        engine.run()
        ends = {o.id: n for n, s in enumerate(engine.steps) for o in s.outputs if o.finish}
        assert ends[first] < ends[third]
        assert ends[second] < ends[third]
        assert engine.outputs[second][0].n_cached == 192


@pytest.mark.parametrize("how", ["cancel", "preempt", "cancel the waiting one"])
def test_the_owner_goes(tiny_model: Path, how: str) -> None:
    with driver(tiny_model, n_batch=64) as engine:
        alone = engine.alone([*SYSTEM, 10], 8)
        first = engine.submit([*SYSTEM, 9], 8)
        second = engine.submit([*SYSTEM, 10], 8)
        engine.loop.step()
        admission = engine.loop.admission
        (running,) = admission.running.values()
        if how == "preempt":
            admission._preempt(running, keep=False)
        else:
            engine.loop.cancel(first if how == "cancel" else second)
        engine.run()
        if how == "cancel the waiting one":
            assert (engine.finish(first), engine.finish(second)) == ("length", "cancelled")
        else:
            assert engine.tokens(second) == alone


def test_patience_ends(tiny_model: Path) -> None:
    """An owner that gets nowhere is not waited for."""
    with driver(tiny_model, n_batch=64) as engine:
        engine.submit([*SYSTEM, 9], 8)
        engine.submit([*SYSTEM, 10], 8)
        admission = engine.loop.admission
        admission.waiting += [r for r in engine.loop._inbox if not isinstance(r, int)]
        engine.loop._inbox.clear()
        for _ in range(PATIENCE + 1):
            admission.admit()
            assert len(admission.running) == 1
        admission.admit()
        assert len(admission.running) == 2
        engine.run()
