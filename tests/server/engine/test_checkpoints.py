"""Memories that cannot be cut anywhere: taken up again from checkpoints, on real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine.checkpoints import SPACING, Checkpoint, Kind, keepable, stops
from edgekit_server.engine.hostcache import HostCache
from tests.support.engine import driver
from tests.support.gguf_kinds import write_hybrid, write_recurrent, write_window

RNG = np.random.default_rng(2)
PROMPT = RNG.integers(8, 264, 150).tolist()
EMPTY = np.zeros(0, np.uint8)
FULL, WINDOW, STATE = Kind(), Kind(n_swa=32), Kind(recurrent=True)
KINDS = {"window": write_window, "state": write_recurrent, "both": write_hybrid}


@pytest.mark.parametrize(
    ("kind", "common", "length", "start", "at", "kept", "used"),
    [
        (FULL, 70, 100, 0, [], 70, None),
        (WINDOW, 100, 100, 68, [], 100, None),
        (WINDOW, 70, 100, 38, [], 70, None),  # all of 38..69 is still there
        (WINDOW, 70, 100, 39, [], 0, None),
        (WINDOW, 20, 100, 0, [], 20, None),
        (WINDOW, 70, 100, 60, [40, 64, 80], 64, 64),
        (WINDOW, 70, 100, -1, [], 0, None),
        (STATE, 100, 100, 99, [], 100, None),
        (STATE, 99, 100, 0, [], 0, None),
        (STATE, 99, 100, 99, [40, 99], 99, 99),
        (STATE, 39, 100, 99, [40], 0, None),
    ],
)
def test_what_can_be_kept(
    kind: Kind, common: int, length: int, start: int, at: list[int], kept: int, used: int | None
) -> None:
    checkpoints = [Checkpoint(n, EMPTY) for n in at]
    n, checkpoint = keepable(kind, common, length, start, checkpoints)
    assert (n, None if checkpoint is None else checkpoint.n_tokens) == (kept, used)


@pytest.mark.parametrize(
    ("n_prompt", "n_cached", "wanted", "places"),
    [
        (20, 0, [], []),
        (100, 0, [], [32, 96]),
        (100, 40, [], [96]),
        (100, 0, [60], [32, 60, 96]),
        (100, 40, [60], [96]),  # too near to what there is
        (2 * SPACING + 200, 0, [], [SPACING, 2 * SPACING, 2 * SPACING + 132, 2 * SPACING + 196]),
    ],
)
def test_where_to_stop(n_prompt: int, n_cached: int, wanted: list[int], places: list[int]) -> None:
    assert stops(n_prompt, n_cached, 64, wanted) == places


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: write(folder / f"{name}.gguf") for name, write in KINDS.items()}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    return models[request.param]


Changed = Callable[[list[int], list[int]], list[int]]


@pytest.mark.parametrize(
    ("changed", "least"),
    [
        (lambda prompt, answer: [*prompt, *answer, 40, 41, 42], 169),  # goes on
        (lambda prompt, answer: prompt, 146),  # again
        (lambda prompt, answer: [*prompt, *answer[:3], 40, 41], 146),  # another answer
        (lambda prompt, answer: [*prompt[:-2], 40, 41], 146),  # another end
        (lambda prompt, answer: [*prompt[:120], 40, 41], 82),  # another question
    ],
)
def test_a_conversation_goes_on(model: Path, changed: Changed, least: int) -> None:
    with driver(model, exact=True) as engine:
        first = engine.submit(PROMPT, 20)
        engine.run()
        prompt = changed(PROMPT, engine.tokens(first))
        alone = engine.alone(prompt, 20)
        again = engine.submit(prompt, 20)
        engine.run()
        n_cached = engine.outputs[again][0].n_cached
        assert n_cached is not None
        assert least <= n_cached < len(prompt)
        assert engine.tokens(again) == alone
        for resident in engine.loop.table.residents:
            assert engine.context.seq_length(resident.seq) == len(resident.tokens)


def test_one_beginning_for_many(model: Path) -> None:
    prompts = [[*PROMPT, *[40 + i] * 10] for i in range(4)]
    with driver(model, exact=True) as engine:
        alone = [engine.alone(prompt, 12) for prompt in prompts]
        ids = [engine.submit(prompt, 12) for prompt in prompts]
        engine.run()
        assert [engine.tokens(i) for i in ids] == alone
        assert [engine.outputs[i][0].n_cached for i in ids] == [0, 150, 150, 150]
        # Another one later, from a checkpoint at the same place.
        last = engine.submit([*PROMPT, 99, 98], 12)
        engine.run()
        assert engine.outputs[last][0].n_cached == 150
        assert engine.tokens(last) == engine.alone([*PROMPT, 99, 98], 12)


def test_a_beginning_seen_twice_is_kept_the_third_time(model: Path) -> None:
    with driver(model, exact=True, n_seq_max=2) as engine:
        for tail, n_cached in ((40, 0), (41, 0), (42, 70)):
            prompt = [*PROMPT[:70], *[tail] * 80]
            request = engine.submit(prompt, 4)
            engine.run()
            assert engine.outputs[request][0].n_cached == n_cached
            assert engine.tokens(request) == engine.alone(prompt, 4)


def test_in_and_out_of_the_store(model: Path) -> None:
    store = HostCache(10**8)
    with driver(model, exact=True, n_seq_max=1, store=store) as engine:
        first = engine.submit(PROMPT, 12)
        engine.run()
        for prompt in ([*PROMPT, *engine.tokens(first), 50], [*PROMPT[:-1], 51]):
            engine.submit([30 + len(prompt)] * 40, 4)
            engine.run()
            alone = engine.alone(prompt, 12)
            back = engine.submit(prompt, 12)
            engine.run()
            assert (engine.outputs[back][0].n_cached or 0) >= 146
            assert engine.tokens(back) == alone


def test_streams(model: Path) -> None:
    """A sequence goes on in its own stream; nothing is copied between streams."""
    with driver(model, exact=True, unified=False) as engine:
        ids = [engine.submit([*PROMPT, 40 + i], 8) for i in range(3)]
        engine.run()
        assert [engine.outputs[i][0].n_cached for i in ids] == [0, 0, 0]
        again = engine.submit([*PROMPT, 42], 8)
        engine.run()
        assert (engine.outputs[again][0].n_cached or 0) >= 147
        assert engine.tokens(again) == engine.tokens(ids[2])


def test_checkpoints_have_a_budget(model: Path) -> None:
    with driver(model, exact=True) as engine:
        table = engine.loop.table
        engine.submit(PROMPT, 4)
        engine.run()
        one = table.residents[0].checkpoints[-1].blob.nbytes
        table._checkpoint_bytes = 2 * one
        for i in range(6):
            engine.submit([30 + i, *PROMPT], 4)
            engine.run()
            assert table._checkpoint_total() <= 2 * one
        table._checkpoint_bytes = 0
        last = engine.submit([*PROMPT, 9, *PROMPT], 4)
        engine.run()
        assert engine.tokens(last) == engine.alone([*PROMPT, 9, *PROMPT], 4)


def test_random_mixes(model: Path) -> None:
    rng = np.random.default_rng(5)
    store = HostCache(10**6)
    with driver(model, exact=True, n_ctx=1024, n_batch=64, n_ubatch=32, store=store) as engine:
        ids: dict[int, list[int]] = {}
        for _ in range(40):
            prompt = [*PROMPT[: int(rng.integers(1, 150))], *rng.integers(8, 12, 3).tolist()]
            ids[engine.submit(prompt, int(rng.integers(1, 20)))] = prompt
            for _ in range(int(rng.integers(0, 8))):
                engine.loop.step()
            if rng.integers(5) == 0:
                engine.loop.cancel(int(rng.choice(list(ids))))
        engine.run()
        for request, prompt in ids.items():
            tokens = engine.tokens(request)
            if engine.finish(request) == "length":
                assert tokens == engine.alone(prompt, len(tokens))
        for resident in engine.loop.table.residents:
            assert resident.owner is None
            assert engine.context.seq_length(resident.seq) == len(resident.tokens)
