"""The engine on trained weights and the real tekken vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Reference

from edgekit_server.engine.tokenizer import Tokenizer
from edgekit_server.engine.wire import Piece, Sampling
from tests.server.engine.conftest import POCKET
from tests.support.engine import Driver, driver, plain_greedy

SOURCES = sorted(Path(pytest.__file__).parent.glob("*.py"))[:3]
CHAT: list[Piece] = [
    ("<s>[SYSTEM_PROMPT]", True),
    ("You are helpful.\n", False),
    ("[/SYSTEM_PROMPT][INST]", True),
    ("Write a function that adds two numbers, it's for Zoë's 12345 files.", False),
    ("[/INST]", True),
]


@pytest.fixture(scope="module")
def engine(pocket: Path) -> Iterator[Driver]:
    with driver(pocket, n_ctx=4096, n_batch=512, n_ubatch=512) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(engine: Driver) -> Tokenizer:
    return Tokenizer(engine.model, engine.tables, engine.context.n_ctx_seq)


def test_tokens_are_the_references(tokenizer: Tokenizer) -> None:
    reference = Reference.from_file(str(POCKET / "tokenizer.json"))
    rendered = "".join(text for text, _ in CHAT)
    expected = reference.encode(rendered, add_special_tokens=False).ids
    assert tokenizer.encode(CHAT).tolist() == expected
    for path in SOURCES:
        text = path.read_text()
        expected = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode([(text, False)], limit=False).tolist() == expected


def test_fim_roles(tokenizer: Tokenizer) -> None:
    expected = {"prefix": "[PREFIX]", "suffix": "[SUFFIX]", "middle": "[MIDDLE]"}
    assert tokenizer._vocabulary.fim == expected


def test_greedy_equals_a_plain_loop(engine: Driver, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(CHAT).tolist()
    assert engine.alone(prompt, 40) == plain_greedy(engine.context, prompt, 40)


def test_batched_equals_alone(engine: Driver, tokenizer: Tokenizer) -> None:
    text = SOURCES[0].read_text()
    prompts = [tokenizer.encode([("<s>" + text[37 * i :][:200], True)]) for i in range(6)]
    sampling = Sampling(temperature=0, n_logprobs=2)
    alone: list[int] = []
    for prompt in prompts:
        alone.append(engine.submit(prompt, 32, sampling, cache=False))
        engine.run()
    together = [engine.submit(prompt, 32, sampling) for prompt in prompts]
    engine.run()
    n_same = 0
    for a, b in zip(alone, together, strict=True):
        at = first_difference(engine.tokens(a), engine.tokens(b))
        n_same += at is None
        # Rounding differs with the batch's size, so a near tie may fall the other way.
        if at is not None:
            best, second = engine.outputs[a][at].top_logprobs[0]
            assert best.logprob - second.logprob < 0.05
    assert n_same >= len(prompts) // 2


def first_difference(a: list[int], b: list[int]) -> int | None:
    assert len(a) == len(b)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def test_seeds_hold_among_others(engine: Driver, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(CHAT).tolist()
    sampling = Sampling(seed=7)
    alone = engine.alone(prompt, 32, sampling)
    others = [engine.submit([1, 300 + i], 40, Sampling(seed=i)) for i in range(2)]
    again = engine.submit(prompt, 32, sampling, cache=False)
    engine.run()
    assert engine.tokens(again) == alone
    assert all(engine.finish(i) == "length" for i in others)


def test_quantized_weights(pocket_quantized: Path, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(CHAT).tolist()
    with driver(pocket_quantized) as engine:
        assert engine.alone(prompt, 32) == plain_greedy(engine.context, prompt, 32)
        sampling = Sampling(seed=7)
        assert engine.alone(prompt, 32, sampling) == engine.alone(prompt, 32, sampling)
