"""What guessing ahead is worth: the same requests with and without it, in turns, in one engine."""

from __future__ import annotations

import keyword
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from edgekit_quantize.convert import convert
from edgekit_server.engine import native
from edgekit_server.engine.speculate import Speculator
from edgekit_server.engine.tokenizer import Tokenizer
from edgekit_server.engine.wire import Sampling
from tests.support.checkpoints import make_checkpoint
from tests.support.engine import GREEDY, Driver, driver

POCKET = Path(__file__).parents[2] / "profiles/edgekit_profiles/pocket"
SOURCES = sorted(Path(os.__file__).parent.glob("*.py"))
ROUNDS = int(os.environ.get("EDGEKIT_BENCH_ROUNDS", "5"))
IDENTIFIER = re.compile(r"\b[A-Za-z_]\w{2,}\b")
NAMES = ("buffer", "counter", "entry", "handler", "cursor", "total", "parser", "record")


@dataclass(frozen=True)
class Task:
    prompt: list[int]
    answer: list[int] | None
    """What a perfect model says; None: there is no such thing."""
    n: int
    sampling: Sampling = GREEDY


class Told:
    """Lets a model say a given text only: its kernels and our loop, with a perfect answer."""

    stopped = False

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = answer
        self._n = 0

    def mask_row(self, row: native.Logits) -> None:
        kept = row[self._answer[self._n]]
        row[:] = -np.inf
        row[self._answer[self._n]] = kept

    def allows(self, token: int) -> bool:
        return token == self._answer[self._n]

    def accept(self, token: int) -> None:
        self._n += 1

    def forced(self) -> list[int]:
        return []


def renames(tokenizer: Tokenizer, count: int, n_lines: int) -> list[Task]:
    """Requests to rename an identifier in code, answered by all of it."""
    rng = random.Random(17)
    tasks: list[Task] = []
    while len(tasks) < count:
        lines = rng.choice(SOURCES).read_text().splitlines(keepends=True)
        start = rng.randrange(max(1, len(lines) - n_lines))
        code = "".join(lines[start : start + n_lines]).rstrip("\n") + "\n"
        names = [n for n in IDENTIFIER.findall(code) if not keyword.iskeyword(n)]
        if len(code) < 20 * n_lines or not names or not code.isascii():
            continue
        old, new = rng.choice(names), "_".join(rng.sample(NAMES, 2))
        after = re.sub(rf"\b{old}\b", new, code)
        ask = f"Rename {old} to {new}:\n```python\n{code}```"
        prompt = tokenizer.encode([("<s>[INST]", True), (ask, False), ("[/INST]", True)])
        answer = tokenizer.encode([(f"```python\n{after}```", False)])
        tasks.append(Task(prompt.tolist(), answer.tolist(), len(answer)))
    return tasks


def free(tokenizer: Tokenizer, count: int, sampling: Sampling, n: int) -> list[Task]:
    """Code to be continued in the model's own words."""
    texts = [SOURCES[11 * i].read_text()[:900] for i in range(count)]
    prompts = [tokenizer.encode([("<s>", True), (text, False)]).tolist() for text in texts]
    return [Task(prompt, None, n, sampling) for prompt in prompts]


@dataclass(frozen=True)
class Figures:
    rate: float
    n_drafted: int
    n_accepted: int
    n_exact: int


def run(engine: Driver, tasks: Sequence[Task], *, guided: bool, speculate: bool) -> Figures:
    """One task after the other; tokens per second of decoding, the prompt's time left out."""
    n_tokens = n_drafted = n_accepted = n_exact = 0
    seconds = 0.0
    for task in tasks:
        matcher = Told(task.answer) if guided and task.answer is not None else None
        request = engine.submit(
            task.prompt, task.n, task.sampling, speculate=speculate, matcher=matcher
        )
        while not engine.outputs[request]:
            engine.loop.step()
        began = time.perf_counter()
        engine.run()
        seconds += time.perf_counter() - began
        tokens, last = engine.tokens(request), engine.outputs[request][-1]
        n_tokens += len(tokens) - 1
        n_drafted += last.n_drafted or 0
        n_accepted += last.n_accepted or 0
        n_exact += tokens == task.answer
    return Figures(n_tokens / seconds, n_drafted, n_accepted, n_exact)


def compare(engine: Driver, name: str, tasks: Sequence[Task], *, guided: bool = False) -> None:
    run(engine, tasks, guided=guided, speculate=True)
    ratios, rates, last = [], [], Figures(0.0, 0, 0, 0)
    for number in range(ROUNDS):
        # Task by task, so that what else the machine does meets both alike.
        seconds = {True: 0.0, False: 0.0}
        n_tokens, n_drafted, n_accepted, n_exact = 0, 0, 0, 0
        for i, task in enumerate(tasks):
            for speculate in ((False, True), (True, False))[(number + i) % 2]:
                got = run(engine, [task], guided=guided, speculate=speculate)
                seconds[speculate] += task.n / got.rate
                if speculate:
                    n_drafted += got.n_drafted
                    n_accepted += got.n_accepted
                    n_exact += got.n_exact
            n_tokens += task.n
        ratios.append(seconds[False] / seconds[True])
        rates.append(n_tokens / seconds[False])
        last = Figures(rates[-1], n_drafted, n_accepted, n_exact)
    ratio, plain = median(ratios), median(rates)
    share = last.n_accepted / last.n_drafted if last.n_drafted else 0.0
    exact = f", {last.n_exact}/{len(tasks)} exact" if tasks[0].answer else ""
    print(
        f"{name:34} {plain:7.0f} tok/s without  x{ratio:.2f} with"
        f"  ({last.n_drafted} drafted, {share:.0%} right{exact})"
    )


def compare_all(path: Path, *, own_words: bool) -> None:
    with driver(
        path, n_ctx=8192, n_batch=512, n_ubatch=512, n_threads=2, speculator=Speculator()
    ) as engine:
        tokenizer = Tokenizer(engine.model, engine.tables, engine.context.n_ctx_seq)
        edits = renames(tokenizer, 4, 24) if own_words else renames(tokenizer, 2, 16)
        compare(engine, "edit this file, perfect answer", edits, guided=True)
        if own_words:
            compare(engine, "edit this file, own words", edits)
            hot = Sampling(seed=1)
            compare(engine, "code, greedy", free(tokenizer, 4, GREEDY, 160))
            compare(engine, "code, default sampling", free(tokenizer, 4, hot, 160))
            wild = Sampling(seed=1, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
            compare(engine, "noise, temperature 1.5", free(tokenizer, 4, wild, 160))
        costs = engine.loop._speculator.costs if engine.loop._speculator else None
        if costs is not None:
            added = costs.added(1, 15)
            print(
                "rows, in steps:  "
                + "  ".join(f"{n + 1}: {1 + added[n]:.2f}" for n in (1, 3, 7, 15))
            )


@pytest.mark.bench
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("filetype", ["Q4_K_M", "Q8_0"])
def test_pocket(tmp_path: Path, filetype: str) -> None:
    print(f"\npocket, {filetype}")
    compare_all(convert(POCKET, tmp_path / "pocket.gguf", filetype).path, own_words=True)


@pytest.mark.bench
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("filetype", ["Q4_K_M", "Q4_0"])
def test_synthetic(tmp_path: Path, filetype: str) -> None:
    """Kernels of a usual size: 110 million parameters, random."""
    print(f"\nsynthetic, {filetype}")
    source = make_checkpoint(
        tmp_path / "source", hidden=1024, layers=8, heads=16, kv_heads=4, ffn=2816, vocab=8192
    )
    compare_all(convert(source, tmp_path / "synthetic.gguf", filetype).path, own_words=False)
