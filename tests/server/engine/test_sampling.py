"""Chains as data, and choices checked against numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit_server.engine import native
from edgekit_server.engine.chain import is_plain_greedy, samplers
from edgekit_server.engine.sampling import seed_for
from edgekit_server.engine.wire import Sampling
from tests.support.engine import GREEDY, Driver, driver

PROMPT = [10, 20, 30, 40, 50]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Driver]:
    with driver(tiny_model) as made:
        yield made


def names(sampling: Sampling) -> list[str]:
    return [name for name, _ in samplers(sampling, n_vocab=300, n_ctx=64, seed=1)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), ["top_k", "top_p", "min_p", "temp_ext", "dist"]),
        (Sampling(top_k=0, top_p=1.0, min_p=0.0), ["temp_ext", "dist"]),
        (
            Sampling(typical_p=0.9, repeat_penalty=1.1),
            ["penalties", "top_k", "typical", "top_p", "min_p", "temp_ext", "dist"],
        ),
        (
            Sampling(repeat_penalty=1.1, repeat_last_n=0, top_k=0),
            ["top_p", "min_p", "temp_ext", "dist"],
        ),
    ],
)
def test_llama_servers_order(sampling: Sampling, expected: list[str]) -> None:
    assert names(sampling) == expected


@pytest.mark.parametrize(("asked", "used"), [(-1, 64), (10**9, 64), (8, 8)])
def test_the_penalty_window_is_bounded(asked: int, used: int) -> None:
    chain = samplers(
        Sampling(presence_penalty=1.0, repeat_last_n=asked), n_vocab=300, n_ctx=64, seed=1
    )
    assert chain[0] == ("penalties", (300, used, 1.0, 0.0, 1.0))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, -1, None])
def test_seeds_never_mean_random_by_accident(seed: int | None) -> None:
    assert 0 <= seed_for(seed) < native.RANDOM_SEED
    if seed is not None and seed >= 0:
        assert seed_for(seed) == seed_for(seed)


def test_what_counts_as_greedy() -> None:
    assert is_plain_greedy(GREEDY)
    assert not is_plain_greedy(Sampling(temperature=0.0, frequency_penalty=0.1))
    assert not is_plain_greedy(Sampling(temperature=0.0, typical_p=0.5))
    assert not is_plain_greedy(Sampling())


def test_a_chain_must_select() -> None:
    with pytest.raises(ValueError, match="dist or greedy"):
        native.Chain([("top_k", (40,))])


def test_temperature_zero_through_the_chain_is_greedy(engine: Driver) -> None:
    nearly = Sampling(temperature=0.0, frequency_penalty=1e-9, seed=1)
    assert not is_plain_greedy(nearly)
    assert engine.alone(PROMPT, 20, nearly) == engine.alone(PROMPT, 20)


def test_penalties_see_the_prompt(engine: Driver) -> None:
    first = engine.alone(PROMPT, 1)[0]
    strong = Sampling(temperature=0.0, presence_penalty=50.0)
    assert engine.alone([*PROMPT[:-1], first, PROMPT[-1]], 1, strong) != [first]
    answer = engine.alone(PROMPT, 30, strong)
    assert len(set(answer)) == 30


def test_logit_bias(engine: Driver) -> None:
    first = engine.alone(PROMPT, 1)[0]
    banned = Sampling(temperature=0.0, logit_bias={first: -math.inf})
    assert first not in engine.alone(PROMPT, 20, banned)
    forced = Sampling(temperature=1.0, logit_bias={99: 1e6})
    assert engine.alone(PROMPT, 5, forced) == [99] * 5


def test_logprobs_are_those_of_the_raw_row(engine: Driver) -> None:
    sampling = Sampling(seed=3, n_logprobs=5, logit_bias={99: 4.0})
    request = engine.submit(PROMPT, 8, sampling, cache=False)
    plain = engine.submit(PROMPT, 8, Sampling(seed=3, logit_bias={99: 4.0}), cache=False)
    engine.run()
    assert engine.tokens(request) == engine.tokens(plain)
    for output in engine.outputs[request]:
        (chosen,), (top,) = output.logprobs, output.top_logprobs
        assert chosen.token == output.tokens[0]
        assert len(top) == 5
        assert [t.logprob for t in top] == sorted((t.logprob for t in top), reverse=True)
        assert chosen.logprob <= top[0].logprob <= 0
        assert sum(math.exp(t.logprob) for t in top) <= 1.0 + 1e-5
        assert top[0].text == engine.tables.pieces[top[0].token]
    assert all(not o.logprobs and not o.top_logprobs for o in engine.outputs[plain])


def test_logprobs_match_a_softmax(engine: Driver) -> None:
    request = engine.submit(PROMPT, 1, Sampling(temperature=0.0, n_logprobs=300), cache=False)
    engine.run()
    (top,) = engine.outputs[request][0].top_logprobs
    assert len(top) == engine.model.n_vocab
    assert sum(math.exp(t.logprob) for t in top) == pytest.approx(1.0, abs=1e-4)


def test_only_the_chosen_logprob(engine: Driver) -> None:
    request = engine.submit(PROMPT, 1, Sampling(temperature=0.0, n_logprobs=0), cache=False)
    engine.run()
    (output,) = engine.outputs[request]
    assert len(output.logprobs) == 1
    assert output.top_logprobs == [[]]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1)])
def test_a_broken_row_fails_its_request_only(
    engine: Driver, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.context.logits

    def poisoned(n_rows: int) -> native.Logits:
        rows = real(n_rows)
        rows[0] = np.nan
        return rows

    good_alone = engine.alone([70, 71], 1)
    monkeypatch.setattr(engine.context, "logits", poisoned)
    bad, good = engine.submit(PROMPT, 1, sampling), engine.submit([70, 71], 1)
    engine.run()
    assert engine.finish(bad) == "error"
    assert engine.tokens(good) == good_alone
