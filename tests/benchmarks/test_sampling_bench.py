"""What drawing a step's tokens costs: C chains over whole rows, shortlists, threads, argmax."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from edgekit_server.engine import chain, native
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.chooser import Chooser
from edgekit_server.engine.parameters import Sampling
from edgekit_server.engine.pool import Pool
from edgekit_server.engine.sampling import Ask, choose
from tests.support import gguf_models
from tests.support.engine import GREEDY, Driver, driver

ROUNDS = 40
DEFAULT = Sampling(seed=1)
PENALTIES = Sampling(seed=1, repeat_penalty=1.1)
OPEN = Sampling(seed=1, top_k=0, top_p=1.0, min_p=0.05)
SIGMA = Sampling(seed=1, top_n_sigma=1.0)


def interleaved(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of each, taken in turn so that a busy machine hurts all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - began) * 1e6)
    return {name: median(values) for name, values in times.items()}


def fill(engine: Driver, n_rows: int) -> None:
    """Put synthetic logits, as spread as a trained model's, where a step's would be."""
    batch = Batch(engine.context.n_batch)
    for seq in range(n_rows):
        engine.context.seq_rm(seq)
        batch.add(seq, 0, array("i", [seq]), output=True)
    assert engine.context.decode(batch.ready()) == 0
    logits = engine.context.logits(n_rows)
    logits[:] = 3 * np.random.default_rng(1).standard_normal(logits.shape, np.float32)


def choosers(engine: Driver, sampling: Sampling, n: int) -> list[Chooser]:
    history = array("i", range(100, 200))
    n_vocab = engine.model.n_vocab
    return [Chooser(sampling, history, n_vocab=n_vocab, n_ctx=4096) for _ in range(n)]


def compare(engine: Driver, sampling: Sampling, n_rows: int, pool: Pool) -> dict[str, float]:
    """Time llama_sampler_sample row by row, and our ways."""
    context, pieces = engine.context, engine.tables.pieces
    samplers = chain.samplers(sampling, n_vocab=engine.model.n_vocab, n_ctx=4096, seed=1)
    plain = [native.chain(samplers) for _ in range(n_rows)]
    for one in plain:
        for token in range(136, 200):
            one.accept(token)
    ours = choosers(engine, sampling, n_rows)
    pooled = choosers(engine, sampling, n_rows)
    fill(engine, n_rows)

    def ask(made: list[Chooser], pool: Pool | None) -> None:
        choose(context, [Ask(one, row) for row, one in enumerate(made)], pieces, pool)

    found = interleaved(
        {
            "C": lambda: [context.sample(one, row) for row, one in enumerate(plain)],
            "ours": lambda: ask(ours, None),
            "pool": lambda: ask(pooled, pool),
        }
    )
    for made in (*plain, *ours, *pooled):
        made.close()
    return found


@pytest.mark.bench
@pytest.mark.parametrize("n_vocab", [32_000, 131_072])
def test_drawing(tmp_path: Path, n_vocab: int) -> None:
    n_filler = n_vocab - len(gguf_models.vocabulary())
    path = gguf_models.write_model(tmp_path / "wide.gguf", quantized=True, n_filler=n_filler)
    pool = Pool(2)
    kinds = {"default": DEFAULT, "penalties": PENALTIES, "no top_k": OPEN, "top_n_sigma": SIGMA}
    with driver(path, n_seq_max=16) as engine:
        print(f"\nvocabulary {n_vocab}: microseconds per row, and times as fast as the C chain")
        for n_rows in (1, 8, 16):
            for kind, sampling in kinds.items():
                found = compare(engine, sampling, n_rows, pool)
                row = "  ".join(
                    f"{name} {value / n_rows:6.0f} (x{found['C'] / value:4.2f})"
                    for name, value in found.items()
                )
                print(f"{n_rows:3} rows, {kind:12}  {row}")
            greedy = choosers(engine, GREEDY, n_rows)
            fill(engine, n_rows)
            asks = [Ask(one, row) for row, one in enumerate(greedy)]
            draw = {"ours": lambda a=asks: choose(engine.context, a, engine.tables.pieces)}
            print(f"{n_rows:3} rows, greedy        ours {interleaved(draw)['ours'] / n_rows:6.0f}")
    pool.close()
