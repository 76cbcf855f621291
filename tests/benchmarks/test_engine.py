"""What our step loop costs on top of llama_decode, and what the child's socket adds."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from statistics import median

import pytest

from edgekit_quantize.convert import convert
from edgekit_server.config import EngineConfig
from edgekit_server.engine import native, spawn, wire
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.wire import Generate, Sampling, Step
from tests.support.engine import Driver, driver

POCKET = Path(__file__).parents[2] / "profiles/edgekit_profiles/pocket"
N_SEQ, N_TOKENS, ROUNDS = 8, 128, 5
PROMPTS = [[1, 100 + i, 200, 300] for i in range(N_SEQ)]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "pocket.gguf"
    return convert(POCKET, path, "Q4_K_M").path


def bare(context: native.Context) -> float:
    """Tokens per second of the least code that decodes 8 sequences greedily."""
    batch = Batch(context.n_batch)
    for seq in range(N_SEQ):
        context.seq_rm(seq)
    batch.clear()
    for seq, prompt in enumerate(PROMPTS):
        batch.add(seq, 0, array("i", prompt), output=True)
    began = time.perf_counter()
    for step in range(N_TOKENS):
        assert context.decode(batch.ready()) == 0
        tokens = context.logits(N_SEQ).argmax(axis=1)
        batch.token[:N_SEQ] = tokens
        batch.pos[:N_SEQ] = len(PROMPTS[0]) + step
        batch.seq[:N_SEQ] = range(N_SEQ)
        batch.output[:N_SEQ] = 1
        batch.n_rows = N_SEQ
    seconds = time.perf_counter() - began
    for seq in range(N_SEQ):
        context.seq_rm(seq)
    return N_SEQ * N_TOKENS / seconds


def ours(engine: Driver, sampling: Sampling) -> tuple[float, float]:
    """Tokens per second of the loop, and microseconds per step outside llama_decode."""
    loop = engine.loop
    steps, inside = loop.n_steps, loop.decode_s
    for prompt in PROMPTS:
        engine.submit(prompt, N_TOKENS, sampling, cache=False)
    began = time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - began
    outside = seconds - (loop.decode_s - inside)
    return N_SEQ * N_TOKENS / seconds, outside / (loop.n_steps - steps) * 1e6


@pytest.mark.bench
def test_step_overhead(pocket: Path) -> None:
    with driver(pocket, n_seq_max=N_SEQ, n_ctx=4096, n_batch=512, n_ubatch=512) as engine:
        bare(engine.context)
        rows: list[tuple[float, ...]] = []
        for _ in range(ROUNDS):
            greedy, chain = ours(engine, GREEDY), ours(engine, Sampling(seed=1))
            rows.append((bare(engine.context), *greedy, *chain))
    plain, greedy_rate, greedy_us, chain_rate, chain_us = map(median, zip(*rows, strict=True))
    print(f"\nbare llama_decode loop, 8 sequences   {plain:8.0f} tok/s")
    print(f"engine loop, greedy                   {greedy_rate:8.0f} tok/s", end="")
    print(f"  x{greedy_rate / plain:.2f}  {greedy_us:.0f} us per step outside llama_decode")
    print(f"engine loop, default sampling         {chain_rate:8.0f} tok/s", end="")
    print(f"  x{chain_rate / plain:.2f}  {chain_us:.0f} us per step outside llama_decode")


@pytest.mark.bench
def test_over_the_socket(pocket: Path) -> None:
    config = EngineConfig(pocket, "pocket", n_ctx=4096, n_seq_max=N_SEQ, n_threads=1)
    began = time.perf_counter()
    process, sock = spawn.spawn(config)
    with process, sock:
        assert isinstance(wire.receive(sock), wire.Hello)
        print(f"\nspawn to Hello                        {time.perf_counter() - began:8.2f} s")
        rates: list[float] = []
        for _ in range(ROUNDS):
            began, n = time.perf_counter(), 0
            for i, prompt in enumerate(PROMPTS):
                wire.send(
                    sock,
                    Generate(
                        i, prompt, N_TOKENS, ignore_eos=True, cache_prompt=False, sampling=GREEDY
                    ),
                )
            while n < N_SEQ * N_TOKENS:
                message = wire.receive(sock)
                assert message is not None
                if isinstance(message, Step):
                    n += sum(len(output.tokens) for output in message.outputs)
            rates.append(n / (time.perf_counter() - began))
        print(f"engine child over its socket          {median(rates):8.0f} tok/s")
        wire.send(sock, wire.Stop())
