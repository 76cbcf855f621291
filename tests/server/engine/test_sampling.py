"""Choices of the real engine, checked against numpy and against llama.cpp's own chains."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_server.engine import native
from edgekit_server.engine.batch import Batch
from edgekit_server.engine.chain import is_plain_greedy
from edgekit_server.engine.chains import Chain, Sampler
from edgekit_server.engine.chooser import Way
from edgekit_server.engine.pool import Pool
from edgekit_server.engine.sampling import Ask, Chooser, Matcher, choose, seed_for
from edgekit_server.engine.wire import Sampling
from tests.support import gguf_models
from tests.support.engine import GREEDY, Driver, driver

PROMPT = [10, 20, 30, 40, 50]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Driver]:
    with driver(tiny_model) as made:
        yield made


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, -1, None])
def test_seeds_never_mean_random_by_accident(seed: int | None) -> None:
    assert 0 <= seed_for(seed) < native.RANDOM_SEED
    if seed is not None and seed >= 0:
        assert seed_for(seed) == seed_for(seed)


def test_a_chain_must_select() -> None:
    with pytest.raises(ValueError, match="dist or greedy"):
        native.chain([("top_k", (40,))])


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


# -- every way a token can be drawn, against the C chain over the whole row ---------------------

N_ROWS = 4
WIDE = 16384 + 7
"""Enough for shortlists, and no multiple of anything."""
SAMPLINGS = {
    "default": Sampling(seed=1),
    "narrow": Sampling(seed=2, top_k=3, temperature=1.5),
    "open": Sampling(seed=3, top_p=1.0, min_p=0.0, temperature=2.0),
    "typical": Sampling(seed=4, typical_p=0.5, min_keep=2),
    "xtc": Sampling(seed=5, xtc_probability=0.6, xtc_threshold=0.05),
    "dynamic": Sampling(seed=6, dynatemp_range=0.7, dynatemp_exponent=2.0),
    "repeat": Sampling(seed=7, repeat_penalty=1.3),
    "presence": Sampling(seed=8, presence_penalty=2.0, frequency_penalty=-0.5, repeat_last_n=20),
    "dry": Sampling(seed=9, dry_multiplier=3.0, dry_allowed_length=1),
    "cold": Sampling(seed=10, temperature=0.0, repeat_penalty=1.5),
    "sigma": Sampling(seed=11, top_n_sigma=1.0),
    "all": Sampling(seed=12, top_k=0),
    "mirostat": Sampling(seed=13, mirostat=1),
    "mirostat 2": Sampling(seed=14, mirostat=2, mirostat_tau=3.0),
    "long memory": Sampling(seed=15, repeat_penalty=1.2, repeat_last_n=-1),
}


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a vocabulary wide enough for shortlists."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    n_filler = WIDE - len(gguf_models.vocabulary())
    return gguf_models.write_model(path, n_filler=n_filler, quantized=True)


@pytest.fixture(scope="module")
def wide(wide_model: Path) -> Iterator[Driver]:
    with driver(wide_model) as made:
        yield made


def outputs(engine: Driver, seed: int, scale: float = 3.0) -> native.Logits:
    """Decode N_ROWS rows with outputs and put synthetic logits in their place."""
    batch = Batch(engine.context.n_batch)
    for seq in range(N_ROWS):
        engine.context.seq_rm(seq)
        batch.add(seq, 0, array("i", [seq]), output=True)
    assert engine.context.decode(batch.ready()) == 0
    logits = engine.context.logits(N_ROWS)
    rng = np.random.default_rng(seed)
    logits[:] = scale * rng.standard_normal(logits.shape, np.float32)
    return logits


def chooser(engine: Driver, sampling: Sampling, matcher: Matcher | None = None) -> Chooser:
    return Chooser(
        sampling,
        array("i", PROMPT * 4),
        n_vocab=engine.model.n_vocab,
        n_ctx=64,
        matcher=matcher,
        vocab=engine.model.vocab,
    )


def reference(engine: Driver, sampling: Sampling) -> Chain:
    """llama-server's chain with every sampler in it, neutral ones too."""
    s, n_vocab, seed = sampling, engine.model.n_vocab, sampling.seed or 0
    window = 64 if s.repeat_last_n < 0 else s.repeat_last_n
    penalties = (n_vocab, window, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
    breakers = tuple(text.encode() for text in s.dry_sequence_breakers)
    dry = (s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n, breakers)
    full: list[Sampler] = [
        ("penalties", penalties),
        ("dry", dry),
        ("top_n_sigma", (s.top_n_sigma,)),
        ("top_k", (s.top_k,)),
        ("typical", (s.typical_p, s.min_keep)),
        ("top_p", (s.top_p, s.min_keep)),
        ("min_p", (s.min_p, s.min_keep)),
        ("xtc", (s.xtc_probability, s.xtc_threshold, s.min_keep, seed)),
        ("temp_ext", (s.temperature, s.dynatemp_range, s.dynatemp_exponent)),
        ("dist", (seed,)),
    ]
    if s.mirostat == 1:
        full = [("temp", (s.temperature,))]
        full.append(("mirostat", (n_vocab, seed, s.mirostat_tau, s.mirostat_eta, 100)))
    elif s.mirostat == 2:
        full = [("temp", (s.temperature,))]
        full.append(("mirostat_v2", (seed, s.mirostat_tau, s.mirostat_eta)))
    chain = native.chain(full, engine.model.vocab)
    for token in PROMPT * 4:
        chain.accept(token)
    return chain


def draw(engine: Driver, choosers: list[Chooser], pool: Pool | None = None) -> list[int | None]:
    asks = [Ask(one, row) for row, one in enumerate(choosers)]
    answers = choose(engine.context, asks, engine.tables.pieces, pool)
    assert all(len(answer) == 1 for answer in answers)
    return [answer[0].token for answer in answers]


def repetitive(logits: native.Logits, step: int) -> None:
    """Make tokens of the prompt likely, so that penalties have something to do."""
    logits[:, PROMPT] += 8.0
    logits[:, PROMPT[step % len(PROMPT)]] += 2.0


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_c_chain_over_the_whole_row_gives_the_same(wide: Driver, kind: str) -> None:
    sampling = SAMPLINGS[kind]
    ours, theirs = chooser(wide, sampling), reference(wide, sampling)
    others = [chooser(wide, Sampling(seed=5)), chooser(wide, GREEDY), chooser(wide, sampling)]
    drawn: list[int | None] = []
    for step in range(25):
        repetitive(outputs(wide, step), step)
        expected = wide.context.sample(theirs, 1)
        got = draw(wide, [others[0], ours, *others[1:]])
        assert got[1] == expected
        drawn.append(expected)
    assert len(set(drawn)) > 3
    for made in (ours, theirs, *others):
        made.close()


def test_which_way_each_goes(wide: Driver, engine: Driver) -> None:
    whole = {"sigma", "all", "mirostat", "mirostat 2"}  # "long memory": of a context of 64
    for kind, sampling in SAMPLINGS.items():
        one, tiny = chooser(wide, sampling), chooser(engine, sampling)
        assert one.way is (Way.WHOLE if kind in whole else Way.SHORT)
        assert tiny.way is Way.WHOLE  # a row too short for a shortlist
        one.close()
        tiny.close()
    assert chooser(wide, GREEDY).way is Way.GREEDY


def test_ties_are_drawn_as_c_does(wide: Driver) -> None:
    sampling = Sampling(seed=1, top_k=20, top_p=1.0, min_p=0.0)
    ours, theirs = chooser(wide, sampling), reference(wide, sampling)
    for step in range(30):
        logits = outputs(wide, step, scale=1.0)
        logits[:] = np.round(logits)  # hundreds of equal logits
        expected = wide.context.sample(theirs, 0)
        assert draw(wide, [ours, *(chooser(wide, GREEDY) for _ in range(3))])[0] == expected
    ours.close()
    theirs.close()


def test_a_pool_changes_nothing(wide: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit_server.engine.sampling.POOL_FROM", 1)
    kinds = ["all", "sigma", "mirostat", "all"]
    alone, pooled = ([chooser(wide, SAMPLINGS[kind]) for kind in kinds] for _ in range(2))
    pool = Pool(3)
    for step in range(10):
        outputs(wide, step)
        assert draw(wide, alone) == draw(wide, pooled, pool)
    pool.close()
    for one in (*alone, *pooled):
        one.close()


@pytest.mark.parametrize("kind", ["default", "repeat", "all", "sigma", "mirostat", "typical"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_numbers_draws_nothing(wide: Driver, kind: str, bad: float) -> None:
    broken, well = chooser(wide, SAMPLINGS[kind]), chooser(wide, Sampling(seed=5))
    greedy = [chooser(wide, GREEDY) for _ in range(2)]
    logits = outputs(wide, 1)
    expected = draw(wide, [chooser(wide, Sampling(seed=5)) for _ in range(4)])[1]
    logits[0] = bad
    logits[3, 17] = math.nan
    got = draw(wide, [broken, well, *greedy])
    assert got[0] is None
    assert got[3] is None
    assert got[1] == expected
    broken.close()
    well.close()


# -- each parameter matters -----------------------------------------------------------------------

BASE = Sampling(seed=7, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"temperature": 0.3},
        {"top_k": 2},
        {"top_p": 0.3},
        {"min_p": 0.5},
        {"typical_p": 0.2},
        {"top_n_sigma": 0.5},
        {"dynatemp_range": 1.4},
        {"dynatemp_range": 1.4, "dynatemp_exponent": 5.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"repeat_penalty": 3.0},
        {"frequency_penalty": 1.9},
        {"presence_penalty": 1.9},
        {"presence_penalty": 1.9, "repeat_last_n": 2},
        {"dry_multiplier": 50.0, "dry_allowed_length": 0},
        {"dry_multiplier": 50.0, "dry_allowed_length": 0, "dry_penalty_last_n": 3},
        {"dry_multiplier": 50.0, "dry_base": 4.0, "dry_allowed_length": 0},
        {"mirostat": 1},
        {"mirostat": 2},
        {"mirostat": 2, "mirostat_tau": 1.0},
        {"mirostat": 2, "mirostat_eta": 0.9, "mirostat_tau": 1.0},
        {"min_p": 0.9, "min_keep": 20},
        {"logit_bias": {99: 5.0}},
    ],
)
def test_each_parameter_changes_the_text(engine: Driver, changes: dict[str, Any]) -> None:
    *some, _ = changes.items()
    before = replace(BASE, **dict(some))
    assert engine.alone(PROMPT, 60, before) == engine.alone(PROMPT, 60, before)
    assert engine.alone(PROMPT, 60, before) != engine.alone(PROMPT, 60, replace(BASE, **changes))


def test_sequence_breakers_stop_dry(engine: Driver) -> None:
    """A text that repeats one letter, until DRY forbids it; unless that letter breaks."""
    letter = engine.tables.pieces.index(b"e")
    again = Sampling(
        temperature=0.0, logit_bias={letter: 50.0}, dry_multiplier=30.0, dry_allowed_length=1
    )
    assert set(engine.alone(PROMPT, 12, again)) != {letter}
    breaking = replace(again, dry_sequence_breakers=["e"])
    assert engine.alone(PROMPT, 12, breaking) == [letter] * 12


# -- drafts and grammars --------------------------------------------------------------------------


class Only:
    """The simplest grammar: so many tokens out of a set."""

    def __init__(self, allowed: set[int], most: int = 10**9) -> None:
        self.allowed, self.most = allowed, most
        self.taken: list[int] = []
        self.n_masks = 0

    def mask_row(self, row: native.Logits) -> None:
        self.n_masks += 1
        kept = {token: float(row[token]) for token in self.allowed}
        row[:] = -np.inf
        for token, logit in kept.items():
            row[token] = logit

    def allows(self, token: int) -> bool:
        return token in self.allowed

    def accept(self, token: int) -> None:
        assert token in self.allowed
        self.taken.append(token)

    def forced(self) -> list[int]:
        return []

    error: str | None = None

    @property
    def stopped(self) -> bool:
        return len(self.taken) >= self.most


MIXED = [Sampling(seed=3), GREEDY, SAMPLINGS["repeat"], SAMPLINGS["all"]]


@pytest.mark.parametrize("sampling", MIXED)
def test_drafts_change_no_text(wide: Driver, sampling: Sampling) -> None:
    """Two rows at a time with a draft in between give the tokens of one row at a time."""
    for right in (True, False):
        single, double = chooser(wide, sampling), chooser(wide, sampling)
        others = [chooser(wide, GREEDY) for _ in range(3)]
        for step in range(8):
            outputs(wide, step)
            first = draw(wide, [single, *others])[0]
            assert first is not None
            logits = outputs(wide, step)
            logits[2] = logits[0]
            asks = [Ask(others[0], 0), Ask(double, 2, [first if right else first + 1])]
            asks.insert(1, Ask(others[1], 1))
            answer = choose(wide.context, asks, wide.tables.pieces)[2]
            assert answer[0].token == first
            assert len(answer) == 1 + right
            if right:  # the row after the draft is row 3 of the same logits
                logits = outputs(wide, step)
                logits[0] = logits[3]
                assert answer[1].token == draw(wide, [single, *others])[0]
        single.close()
        double.close()


@pytest.mark.parametrize("sampling", MIXED)
def test_a_grammar_holds_the_answer(wide: Driver, sampling: Sampling) -> None:
    allowed = set(range(0, WIDE, 1000))
    matcher = Only(allowed)
    held = chooser(wide, sampling, matcher)
    others = [chooser(wide, Sampling(seed=1)) for _ in range(3)]
    drawn: list[int | None] = []
    for step in range(20):
        outputs(wide, step)
        drawn.append(draw(wide, [held, *others])[0])
    assert drawn == matcher.taken
    assert set(drawn) <= allowed
    assert matcher.n_masks > 0
    held.close()


@pytest.mark.parametrize("sampling", [Sampling(seed=3), GREEDY])
def test_a_grammar_that_allows_the_token_costs_no_mask(wide: Driver, sampling: Sampling) -> None:
    matcher = Only(set(range(WIDE)))
    held, free = chooser(wide, sampling, matcher), chooser(wide, sampling)
    others = [chooser(wide, GREEDY) for _ in range(2)]
    for step in range(10):
        logits = outputs(wide, step)
        logits[1] = logits[0]
        got = draw(wide, [held, free, *others])
        assert got[0] == got[1]
    assert matcher.n_masks == 0
    held.close()
    free.close()


def test_under_a_grammar_greedy_takes_the_largest_allowed(wide: Driver) -> None:
    allowed = [5, 2000, 7000]
    held = chooser(wide, GREEDY, Only(set(allowed)))
    others = [chooser(wide, GREEDY) for _ in range(3)]
    for step in range(10):
        logits = outputs(wide, step)
        expected = max(allowed, key=lambda token: float(logits[0, token]))
        assert draw(wide, [held, *others])[0] == expected


def test_the_end_of_a_grammar_ends_the_answer_before_its_drafts(wide: Driver) -> None:
    matcher = Only({4}, most=2)
    outputs(wide, 1)
    (answer,) = choose(
        wide.context, [Ask(chooser(wide, GREEDY, matcher), 0, [4, 4, 4])], wide.tables.pieces
    )
    assert [choice.token for choice in answer] == [4, 4]


@pytest.mark.parametrize("sampling", MIXED)
def test_nothing_allowed_is_no_token(wide: Driver, sampling: Sampling) -> None:
    held = chooser(wide, sampling, Only(set()))
    outputs(wide, 1)
    assert draw(wide, [held, *(chooser(wide, GREEDY) for _ in range(3))])[0] is None
    held.close()


# -- whatever else is running ---------------------------------------------------------------------


def company(path: Path, prompts: list[list[int]], **options: Any) -> None:
    """Compare seeded texts alone with those among seven others, in two orders of arrival."""
    samplings = [replace(one, seed=20 + i) for i, one in enumerate(SAMPLINGS.values())][:8]
    with driver(path, n_seq_max=8, **options) as engine:
        alone = [engine.alone(p, 24, s) for p, s in zip(prompts, samplings, strict=True)]
        assert len({tuple(text) for text in alone}) == 8
        for order in (range(8), reversed(range(8))):
            ids = {i: engine.submit(prompts[i], 24, samplings[i], cache=False) for i in order}
            engine.run()
            for i, request in ids.items():
                assert engine.tokens(request) == alone[i]


def test_same_seed_same_text_alone_and_in_company(tiny_quantized: Path, wide_model: Path) -> None:
    """Quantized weights and steps below 64 rows: there llama.cpp's CPU kernels compute a row
    the same whatever is beside it (README), and so must everything after them."""
    prompts = [[11 + i, *range(30, 34 + i % 3)] for i in range(8)]
    company(tiny_quantized, prompts)
    company(wide_model, prompts)
