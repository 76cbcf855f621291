"""The step loop on real llama.cpp: what comes out does not depend on what else runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine.wire import Sampling
from edgekit_server.errors import EngineDiedError
from tests.support.engine import Driver, driver, plain_greedy

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(8, 264, n).tolist() for n in (1, 7, 40, 100, 150, 300)]


@pytest.fixture(scope="module")
def shared(tiny_model: Path) -> Iterator[Driver]:
    with driver(tiny_model) as made:
        yield made


def test_greedy_equals_a_plain_loop(shared: Driver) -> None:
    for prompt in PROMPTS:
        assert shared.alone(prompt, 24) == plain_greedy(shared.context, prompt, 24)


@pytest.mark.parametrize(("model", "n_prompts"), [("tiny_model", 6), ("tiny_quantized", 5)])
def test_batched_equals_alone(model: str, n_prompts: int, request: pytest.FixtureRequest) -> None:
    """The longest prompt is cut into other chunks when others decode, and llama.cpp rounds
    differently per chunk size: enough to turn a near tie of random quantized weights."""
    prompts = PROMPTS[:n_prompts]
    with driver(request.getfixturevalue(model)) as engine:
        alone = [engine.alone(prompt, 24) for prompt in prompts]
        ids = [engine.submit(prompt, 24, cache=False) for prompt in prompts]
        engine.run()
        assert [engine.tokens(i) for i in ids] == alone
        assert engine.loop.table.used_cells() == 0


def test_same_seed_same_text_whatever_else_runs(shared: Driver) -> None:
    sampling = Sampling(seed=42, temperature=1.2)
    alone = shared.alone(PROMPTS[2], 30, sampling)
    others = [shared.submit(p, 30, Sampling(seed=i), cache=False) for i, p in enumerate(PROMPTS)]
    again = shared.submit(PROMPTS[2], 30, sampling)
    shared.run()
    assert shared.tokens(again) == alone
    assert len({tuple(shared.tokens(i)) for i in others}) == len(others)
    assert shared.alone(PROMPTS[2], 30, Sampling(seed=43, temperature=1.2)) != alone


def test_unseeded_answers_differ(shared: Driver) -> None:
    hot = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
    assert shared.alone(PROMPTS[1], 30, hot) != shared.alone(PROMPTS[1], 30, hot)


def test_one_message_per_step(shared: Driver) -> None:
    before = len(shared.steps)
    ids = [shared.submit([9, 10 + i], 5) for i in range(4)]
    shared.run()
    assert len(shared.steps) - before == 5
    assert {o.id for o in shared.steps[-1].outputs} == set(ids)


def test_prefix_reuse_changes_nothing(shared: Driver) -> None:
    prompt = PROMPTS[4]
    first = shared.submit(prompt, 10)
    shared.run()
    longer = [*prompt, *shared.tokens(first), 50, 51]
    second = shared.submit(longer, 10)
    shared.run()
    assert shared.outputs[first][0].n_cached == 0
    # Everything but the last answer token, which was never computed, and the new ones.
    assert shared.outputs[second][0].n_cached == len(prompt) + 9
    assert all(o.n_cached is None for o in shared.outputs[second][1:])
    assert shared.tokens(second) == shared.alone(longer, 10)


def test_a_running_prefix_is_shared(shared: Driver) -> None:
    system = RNG.integers(8, 264, 120).tolist()
    alone = [shared.alone([*system, 20 + i], 12) for i in range(3)]
    first = shared.submit([*system, 20], 12)
    shared.loop.step()
    rest = [shared.submit([*system, 20 + i], 12) for i in (1, 2)]
    shared.run()
    assert [shared.tokens(i) for i in (first, *rest)] == alone
    assert [shared.outputs[i][0].n_cached for i in rest] == [120, 120]


def test_the_end_of_generation(shared: Driver) -> None:
    answer = shared.alone(PROMPTS[3], 12)
    end = answer[5]
    at = answer.index(end)
    request = shared.submit(PROMPTS[3], 12, ends=frozenset([end]))
    shared.run()
    assert shared.tokens(request) == answer[:at]
    assert shared.finish(request) == "stop"


def test_max_tokens_and_nothing_at_all(shared: Driver) -> None:
    one, none = shared.submit(PROMPTS[1], 1), shared.submit(PROMPTS[1], 0)
    shared.run()
    assert [(len(shared.tokens(i)), shared.finish(i)) for i in (one, none)] == [
        (1, "length"),
        (0, "length"),
    ]
    assert shared.outputs[none][0].n_cached == 0


def test_first_output_carries_the_figures(shared: Driver) -> None:
    request = shared.submit(PROMPTS[3], 3, cache=False)
    shared.run()
    first, *rest = shared.outputs[request]
    assert first.n_cached == 0
    assert first.prefill_ms is not None
    assert first.prefill_ms > 0
    assert all(o.prefill_ms is None for o in rest)


def test_cancel_everywhere(tiny_model: Path) -> None:
    with driver(tiny_model, n_seq_max=1, n_ubatch=16, n_batch=16) as engine:
        running = engine.submit(PROMPTS[5], 500)
        queued = engine.submit(PROMPTS[1], 5)
        engine.loop.step()  # 16 of 300 prompt tokens
        assert not engine.outputs
        engine.loop.cancel(running)
        engine.loop.step()
        assert engine.finish(running) == "cancelled"
        assert engine.tokens(running) == []
        engine.run()
        assert engine.finish(queued) == "length"

        decoding, queued = engine.submit([9], 500), engine.submit([10], 5)
        for _ in range(5):
            engine.loop.step()
        engine.loop.cancel(queued)
        engine.loop.cancel(decoding)
        engine.loop.cancel(4711)
        assert engine.loop.step() is False
        assert engine.finish(queued) == engine.finish(decoding) == "cancelled"
        assert 0 < len(engine.tokens(decoding)) < 500


def test_the_context_ends(tiny_model: Path) -> None:
    with driver(tiny_model, n_ctx=256, n_seq_max=2, n_batch=64) as engine:
        request = engine.submit(PROMPTS[4], 10_000)
        engine.run()
        assert len(engine.tokens(request)) == 256 - 150
        assert engine.finish(request) == "length"


def test_the_queue_is_bounded(tiny_model: Path) -> None:
    with driver(tiny_model, n_seq_max=2, max_queue=3) as engine:
        for _ in range(5):
            assert engine.loop.has_room()
            engine.submit([9], 5)
        assert not engine.loop.has_room()
        engine.run()
        assert engine.loop.has_room()


def test_the_cancelled_leave_the_queue_before_the_step_ends(tiny_model: Path) -> None:
    with driver(tiny_model, n_seq_max=2, max_queue=3) as engine:
        running = engine.submit([9], 50)
        engine.loop.step()
        for _ in range(20):  # no step is done meanwhile
            assert engine.loop.has_room()
            engine.loop.cancel(engine.submit([9], 5))
        engine.loop.cancel(running)
        for _ in range(5):
            assert engine.loop.has_room()
            engine.submit([9], 5)
        assert not engine.loop.has_room()
        engine.run()


def test_preemption_when_memory_runs_out(tiny_model: Path) -> None:
    """Four answers of 120 tokens in 256 cells: the youngest gives way and comes back."""
    prompts = [[20 + i, 30, 40] for i in range(4)]
    with driver(tiny_model, n_ctx=256, n_batch=64) as engine:
        alone = [engine.alone(prompt, 120) for prompt in prompts]
        engine.loop.admission.fits = lambda *_: True  # type: ignore[method-assign]
        ids = [engine.submit(prompt, 120) for prompt in prompts]
        engine.run()
        assert engine.loop.admission.n_preempted > 0
        assert [engine.tokens(i) for i in ids] == alone
        for i in ids:
            assert sum(o.n_cached is not None for o in engine.outputs[i]) == 1


def test_admission_avoids_preemption(tiny_model: Path) -> None:
    prompts = [[20 + i, 30, 40] for i in range(4)]
    with driver(tiny_model, n_ctx=256, n_batch=64) as engine:
        alone = [engine.alone(prompt, 120) for prompt in prompts]
        ids = [engine.submit(prompt, 120) for prompt in prompts]
        engine.run()
        assert engine.loop.admission.n_preempted == 0
        assert [engine.tokens(i) for i in ids] == alone


def test_idle_residents_make_room(tiny_model: Path) -> None:
    with driver(tiny_model, n_ctx=256, n_batch=64) as engine:
        for i in range(6):
            request = engine.submit([*PROMPTS[3][i:], 9], 40)
            engine.run()
            assert engine.finish(request) == "length"
        assert engine.loop.admission.n_preempted == 0


def test_failed_decodes(shared: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shared.context.decode
    codes = iter([-3, -3])
    monkeypatch.setattr(shared.context, "decode", lambda batch: next(codes, None) or real(batch))
    lost = [shared.submit([9], 5), shared.submit([10], 5)]
    shared.run()
    assert [shared.finish(i) for i in lost] == ["error", "error"]
    seen = shared.submit([9], 5)
    shared.run()
    assert shared.finish(seen) == "error"
    fine = shared.submit([9], 5)
    shared.run()
    assert shared.finish(fine) == "length"
    monkeypatch.setattr(shared.context, "decode", lambda batch: -3)
    for _ in range(2):
        shared.submit([9], 5)
        shared.loop.step()
    shared.submit([9], 5)
    with pytest.raises(EngineDiedError):
        shared.loop.step()


def test_no_room_for_one_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with driver(tiny_model) as engine:
        monkeypatch.setattr(engine.context, "decode", lambda batch: 1)
        request = engine.submit([9, 10], 5)
        engine.run()
        assert engine.finish(request) == "error"
        assert "no room" in (engine.outputs[request][-1].error or "")


def test_memory_that_cannot_be_cut(tiny_model: Path) -> None:
    """Recurrent and sliding-window models: nothing is kept, nothing is shared."""
    with driver(tiny_model, reuse=False) as engine:
        alone = [engine.alone([*PROMPTS[3], 20 + i], 10) for i in range(3)]
        for _ in range(2):
            ids = [engine.submit([*PROMPTS[3], 20 + i], 10) for i in range(3)]
            engine.run()
            assert [engine.tokens(i) for i in ids] == alone
            assert [engine.outputs[i][0].n_cached for i in ids] == [0, 0, 0]
        assert engine.loop.table.used_cells() == 0


def test_random_mixes_leak_nothing(tiny_model: Path) -> None:
    rng = np.random.default_rng(11)
    with driver(tiny_model, n_ctx=512, n_batch=64, n_ubatch=32) as engine:
        ids = []
        for _ in range(60):
            base = PROMPTS[int(rng.integers(len(PROMPTS)))][: int(rng.integers(1, 200))]
            sampling = Sampling(temperature=float(rng.integers(0, 2)), seed=int(rng.integers(9)))
            cache = bool(rng.integers(4))
            ids.append(engine.submit(base, int(rng.integers(0, 60)), sampling, cache=cache))
            for _ in range(int(rng.integers(0, 6))):
                engine.loop.step()
            if rng.integers(5) == 0:
                engine.loop.cancel(int(rng.choice(ids)))
        engine.run()
        for i in ids:
            assert sum(o.finish is not None for o in engine.outputs[i]) == 1
            assert engine.finish(i) in ("length", "cancelled")
        table = engine.loop.table
        assert all(r.owner is None for r in table.residents)
        for resident in table.residents:
            assert engine.context.seq_length(resident.seq) == len(resident.tokens)
        assert table.used_cells() <= table.n_cells
