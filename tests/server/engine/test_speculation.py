"""Drafts on real llama.cpp: right or wrong, they change no text and leave memory in order."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgekit_quantize.convert import convert
from edgekit_server.config import EngineConfig
from edgekit_server.engine import draft, native, speculation
from edgekit_server.engine.costs import StepCosts
from edgekit_server.engine.draft import DraftModel
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.speculate import Speculator, Wanting, drafter_of
from edgekit_server.engine.tokenizer import Tokenizer
from edgekit_server.engine.wire import Output, Sampling
from edgekit_server.errors import ConfigError, ModelMissingError
from tests.server.engine.conftest import POCKET
from tests.server.engine.test_pocket import SOURCES, first_difference
from tests.support.engine import GREEDY, Driver, driver

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(8, 264, n).tolist() for n in (1, 7, 40, 100)]
PENALTIES = Sampling(seed=3, repeat_penalty=1.3, frequency_penalty=0.2)


class Oracle(Speculator):
    """Knows the answers, and lies now and then."""

    def __init__(self, seed: int = 0, lies: float = 0.2) -> None:
        super().__init__()
        self.answers: list[list[int]] = []
        self._random = random.Random(seed)
        self._lies = lies
        self.n_accepted = self.n_drafted = 0

    def propose(self, requests: Sequence[Wanting], room: int) -> dict[int, array[int]]:
        drafts: dict[int, array[int]] = {}
        for request in requests:
            most = min(room, request.limit - len(request.tokens) - 1, self._random.randint(0, 9))
            answer = self._answer(request.tokens)
            if most <= 0 or answer is None or drafter_of(request) is None:
                continue
            draft = answer[len(request.tokens) :][:most]
            for i in range(len(draft)):
                if self._random.random() < self._lies:
                    draft[i] = self._random.randrange(8, 264)
            if draft:
                drafts[request.key] = array("i", draft)
                room -= len(draft)
        return drafts

    def _answer(self, tokens: array[int]) -> list[int] | None:
        known = tokens.tolist()
        return next((a for a in self.answers if a[: len(known)] == known), None)

    def settle(self, n_rows, seconds, fates) -> None:  # type: ignore[no-untyped-def]
        super().settle(n_rows, seconds, fates)
        self.n_drafted += sum(n for _, n, _ in fates)
        self.n_accepted += sum(n for _, _, n in fates)


def together(engine: Driver, sampling: Callable[[int], Sampling], n: int) -> list[list[int]]:
    ids = [engine.submit(p, n, sampling(i), cache=False) for i, p in enumerate(PROMPTS)]
    engine.run()
    return [engine.tokens(i) for i in ids]


def in_order(engine: Driver) -> bool:
    table = engine.loop.table
    return all(engine.context.seq_length(r.seq) == len(r.tokens) for r in table.residents)


@pytest.mark.parametrize(
    "sampling",
    [
        lambda i: GREEDY,
        lambda i: Sampling(seed=40 + i, temperature=1.1),
        lambda i: PENALTIES,
        lambda i: Sampling(temperature=0, repeat_penalty=1.5),
        lambda i: Sampling(temperature=0, logit_bias={30: 3.0, 40: -5.0}, n_logprobs=2),
        lambda i: (GREEDY, PENALTIES, GREEDY, Sampling(seed=i, top_k=0))[i],
    ],
    ids=["greedy", "seeded", "penalties", "greedy-penalties", "bias-logprobs", "mixed"],
)
def test_drafts_change_no_text(tiny_model: Path, sampling: Callable[[int], Sampling]) -> None:
    oracle = Oracle()
    with driver(tiny_model, speculator=oracle) as engine:
        plain = together(engine, sampling, 60)
        n_steps = engine.loop.n_steps
        oracle.answers = [p + a for p, a in zip(PROMPTS, plain, strict=True)]
        assert together(engine, sampling, 60) == plain
        assert 0.3 < oracle.n_accepted / oracle.n_drafted < 0.95
        assert engine.loop.n_steps - n_steps < 0.6 * n_steps
        assert in_order(engine)
        assert engine.loop.table.used_cells() == 0


def test_logprobs_are_those_of_the_same_rows(tiny_model: Path) -> None:
    oracle = Oracle(lies=0.1)
    asked = Sampling(temperature=0, n_logprobs=3)
    with driver(tiny_model, speculator=oracle) as engine:
        plain = engine.submit(PROMPTS[2], 40, asked, cache=False)
        engine.run()
        oracle.answers = [PROMPTS[2] + engine.tokens(plain)]
        guessed = engine.submit(PROMPTS[2], 40, asked, cache=False)
        engine.run()
        assert engine.tokens(guessed) == engine.tokens(plain)
        a, b = scores(engine.outputs[plain]), scores(engine.outputs[guessed])
        assert [len(o.tokens) for o in engine.outputs[guessed]] != [1] * 40
        assert [s[0] for s in a] == [s[0] for s in b]
        assert [s[1] for s in a] == pytest.approx([s[1] for s in b], abs=2e-3)
        for output in engine.outputs[guessed]:
            n = len(output.tokens)
            assert n == len(output.logprobs) == len(output.top_logprobs) == len(output.pieces)


def scores(outputs: list[Output]) -> list[tuple[int, float]]:
    return [(t.token, t.logprob) for o in outputs for t in o.logprobs]


def test_ends_within_a_draft(tiny_model: Path) -> None:
    """The answer ends with a token in the middle of what was guessed, or at max_tokens."""
    oracle = Oracle(lies=0.0)
    with driver(tiny_model, speculator=oracle) as engine:
        answer = engine.alone(PROMPTS[3], 50)
        oracle.answers = [PROMPTS[3] + answer]
        for at in range(1, 30):
            end = answer[at]
            request = engine.submit(PROMPTS[3], 50, ends=frozenset([end]))
            engine.run()
            assert engine.tokens(request) == answer[: answer.index(end)]
            assert engine.finish(request) == "stop"
            limited = engine.submit(PROMPTS[3], at)
            engine.run()
            assert engine.tokens(limited) == answer[:at]
            assert engine.finish(limited) == "length"
            assert in_order(engine)


def test_figures_go_out_with_the_last_output(tiny_model: Path) -> None:
    oracle = Oracle(lies=0.0)
    with driver(tiny_model, speculator=oracle) as engine:
        answer = engine.alone(PROMPTS[1], 30)
        oracle.answers = [PROMPTS[1] + answer]
        request = engine.submit(PROMPTS[1], 30, cache=False)
        engine.run()
        *others, last = engine.outputs[request]
        assert all(o.n_drafted is None for o in others)
        assert last.n_drafted == last.n_accepted == 30 - len(engine.outputs[request])


def test_prefixes_kept_after_drafts_are_right(tiny_model: Path) -> None:
    oracle = Oracle(lies=0.3)
    with driver(tiny_model, speculator=oracle) as engine:
        answer = engine.alone(PROMPTS[3], 40)
        oracle.answers = [PROMPTS[3] + answer]
        engine.submit(PROMPTS[3], 40)
        engine.run()
        longer = [*PROMPTS[3], *answer, 50, 51]
        again = engine.submit(longer, 10)
        engine.run()
        assert engine.outputs[again][0].n_cached == len(PROMPTS[3]) + 39
        assert engine.tokens(again) == engine.alone(longer, 10)


def test_cells_run_out(tiny_model: Path) -> None:
    """Drafts take nobody's memory: no preemption that would not have been without them."""
    prompts = [[20 + i, 30, 40] for i in range(4)]
    oracle = Oracle(lies=0.5)
    with driver(tiny_model, n_ctx=256, n_batch=64, speculator=oracle) as engine:
        alone = [engine.alone(prompt, 61) for prompt in prompts]
        oracle.answers = [p + a for p, a in zip(prompts, alone, strict=True)]
        engine.loop.admission.fits = lambda *_: True  # type: ignore[method-assign]
        ids = [engine.submit(prompt, 61) for prompt in prompts]  # 256 cells in all, less 4
        engine.run()
        assert [engine.tokens(i) for i in ids] == alone
        assert engine.loop.admission.n_preempted == 0
        assert oracle.n_drafted > 0
        assert in_order(engine)


def test_a_decode_without_room_is_tried_again_without_drafts(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = Oracle(lies=0.0)
    with driver(tiny_model, speculator=oracle) as engine:
        answer = engine.alone(PROMPTS[2], 20)
        oracle.answers = [PROMPTS[2] + answer]
        real = engine.context.decode
        n_refused = 0

        def decode(batch) -> int:  # type: ignore[no-untyped-def]
            nonlocal n_refused
            if 1 < batch.n_tokens <= 10:
                n_refused += 1
                return 1
            return real(batch)

        monkeypatch.setattr(engine.context, "decode", decode)
        assert engine.alone(PROMPTS[2], 20) == answer
        assert n_refused > 3
        assert oracle.n_drafted == 0


def test_prompts_arrive_while_drafts_run(tiny_model: Path) -> None:
    """Prompts keep at least half of each step's rows, and finish."""
    oracle = Oracle(lies=0.2)
    long = RNG.integers(8, 264, 400).tolist()
    with driver(tiny_model, speculator=oracle) as engine:
        first = [engine.alone(p, 80) for p in PROMPTS]
        last = engine.alone(long, 20)
        oracle.answers = [p + a for p, a in zip(PROMPTS, first, strict=True)]
        ids = [engine.submit(p, 80, cache=False) for p in PROMPTS[:3]]
        for _ in range(3):
            engine.loop.step()
        late = engine.submit(long, 20, cache=False)
        engine.run()
        assert [engine.tokens(i) for i in ids] == first[:3]
        assert engine.tokens(late) == last


def test_cancelled_in_the_middle(tiny_model: Path) -> None:
    oracle = Oracle(lies=0.2)
    rng = random.Random(2)
    with driver(tiny_model, speculator=oracle) as engine:
        plain = together(engine, lambda i: GREEDY, 60)
        oracle.answers = [p + a for p, a in zip(PROMPTS, plain, strict=True)]
        for _ in range(10):
            ids = [engine.submit(p, 60, cache=bool(rng.getrandbits(1))) for p in PROMPTS]
            for _ in range(rng.randrange(12)):
                engine.loop.step()
            engine.loop.cancel(ids[rng.randrange(4)])
            engine.run()
            for i, answer in zip(ids, plain, strict=True):
                got = engine.tokens(i)
                assert got == answer[: len(got)]
            assert in_order(engine)


def test_memory_that_cannot_be_cut_has_no_drafts(tiny_model: Path) -> None:
    with driver(tiny_model, speculator=Speculator(), reuse=False) as engine:
        request = engine.submit([9, 9, 9], 60)
        engine.run()
        assert engine.outputs[request][-1].n_drafted is None


def test_output_rows_are_checked(tiny_model: Path) -> None:
    for n in (3, 65):
        with pytest.raises(ConfigError, match="n_outputs_max"):
            ContextOptions(256, 4, 64, 64, 1, n_outputs_max=n).check()
    with driver(tiny_model) as engine, pytest.raises(ValueError, match="output rows"):
        engine.context.logits(5)
    with driver(tiny_model, speculator=Speculator()) as engine:
        assert engine.context.n_outputs_max == 4 + 48


def test_looping_text_is_guessed_by_lookup(tiny_model: Path) -> None:
    """What random weights say soon repeats itself; the engine's own policy sees to the rest."""
    with driver(tiny_model) as plain, driver(tiny_model, speculator=Speculator()) as engine:
        expected = plain.alone([9, 9, 9], 300)
        request = engine.submit([9, 9, 9], 300, cache=False)
        engine.run()
        assert engine.tokens(request) == expected
        other = engine.submit([9, 9, 9], 50, Sampling(seed=1), cache=False)
        engine.run()
        assert engine.tokens(other) == plain.alone([9, 9, 9], 50, Sampling(seed=1))
        assert in_order(engine)


@pytest.fixture(scope="module")
def pocket_engine(pocket: Path) -> Iterator[Driver]:
    with driver(pocket, n_ctx=4096, n_batch=512, n_ubatch=512, speculator=Speculator()) as made:
        yield made


def code_prompts(engine: Driver) -> list[list[int]]:
    """Code that repeats itself, so that the model goes on repeating it."""
    tokenizer = Tokenizer(engine.model, engine.tables, engine.context.n_ctx_seq)
    prompts = []
    for source in SOURCES:
        block = "\n".join(source.read_text().splitlines()[:12]) + "\n\n"
        prompts.append(tokenizer.encode([("<s>", True), (block * 3, False)]).tolist()[:600])
    return prompts


def test_pocket_copies_the_same_text_in_fewer_steps(pocket: Path, pocket_engine: Driver) -> None:
    with driver(pocket, n_ctx=4096, n_batch=512, n_ubatch=512) as plain:
        for prompt in code_prompts(plain):
            expected = plain.alone(prompt, 96)
            request = pocket_engine.submit(prompt, 96, cache=False)
            pocket_engine.run()
            assert pocket_engine.tokens(request) == expected


def test_pocket_quantized_but_for_near_ties(pocket_quantized: Path) -> None:
    """Quantized kernels round by the number of rows, so a near tie may fall the other way; the
    first difference must be one."""
    asked = Sampling(temperature=0, n_logprobs=2)
    oracle = Oracle(lies=0.2)
    with driver(pocket_quantized, n_ctx=4096, speculator=oracle) as engine:
        n_same = 0
        prompts = code_prompts(engine)
        for prompt in prompts:
            a = engine.submit(prompt, 96, asked, cache=False)
            engine.run()
            oracle.answers = [prompt + engine.tokens(a)]
            b = engine.submit(prompt, 96, asked, cache=False)
            engine.run()
            at = first_difference(engine.tokens(a), engine.tokens(b))
            n_same += at is None
            if at is not None:
                tops = [top for o in engine.outputs[a] for top in o.top_logprobs]
                assert tops[at][0].logprob - tops[at][1].logprob < 0.05
        assert n_same >= len(prompts) - 1
        assert oracle.n_accepted > 100


@pytest.fixture(scope="module")
def pocket_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(POCKET, tmp_path_factory.mktemp("models") / "bf16.gguf", "BF16", threads=1).path


@pytest.fixture(scope="module")
def pocket_q4_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(POCKET, tmp_path_factory.mktemp("models") / "q4_0.gguf", "Q4_0", threads=1).path


@contextmanager
def with_draft_model(target: Path, small: Path, **options: int) -> Iterator[Driver]:
    log = native.capture_log()
    draft_options = ContextOptions(2048, 4, 256, 64, 1)
    with native.opened(ModelOptions(small, 0), draft_options, log) as (_, context):
        speculator = Speculator(DraftModel(context))
        # A machine where rows are cheap and the draft model cheaper: the policy always drafts.
        speculator.costs = Cheap()
        with driver(target, speculator=speculator, **options) as engine:
            yield engine


class Cheap(StepCosts):
    def learn(self, rows: int, seconds: float) -> None:
        super().learn(rows, 1000.0 + rows)


def test_a_draft_model_changes_no_text(
    pocket_bf16: Path, pocket_q4_0: Path, pocket_engine: Driver
) -> None:
    """The same model in fewer bits guesses most tokens; wrong ones leave nothing behind."""
    tokenizer = Tokenizer(
        pocket_engine.model, pocket_engine.tables, pocket_engine.context.n_ctx_seq
    )
    texts = [source.read_text()[:500] for source in SOURCES]
    prompts = [tokenizer.encode([("<s>", True), (text, False)]).tolist() for text in texts]
    asked = Sampling(temperature=0, n_logprobs=2)
    with driver(pocket_bf16) as plain, with_draft_model(pocket_bf16, pocket_q4_0) as engine:
        alone = []
        for prompt in prompts:
            alone.append(plain.submit(prompt, 48, asked, cache=False))
            plain.run()
        for _ in range(2):  # the second time the draft model's memory holds other answers
            ids = [engine.submit(prompt, 48, asked, cache=False) for prompt in prompts]
            engine.run()
            n_same = 0
            for a, b in zip(alone, ids, strict=True):
                at = first_difference(plain.tokens(a), engine.tokens(b))
                n_same += at is None
                if at is not None:
                    tops = [top for o in plain.outputs[a] for top in o.top_logprobs]
                    assert tops[at][0].logprob - tops[at][1].logprob < 0.05
            assert n_same >= 2
            last = [engine.outputs[i][-1] for i in ids]
            n_drafted = sum(o.n_drafted or 0 for o in last)
            n_accepted = sum(o.n_accepted or 0 for o in last)
            assert n_drafted > 60
            assert n_accepted / n_drafted > 0.6
            assert in_order(engine)


def test_a_draft_model_is_right_about_itself(tiny_model: Path) -> None:
    """Its memory is in step with the requests': of sure guesses every one is right."""
    with driver(tiny_model) as plain, with_draft_model(tiny_model, tiny_model) as engine:
        expected = together(plain, lambda i: GREEDY, 60)
        for _ in range(2):
            ids = [engine.submit(p, 60, GREEDY, cache=False) for p in PROMPTS]
            engine.run()
            assert [engine.tokens(i) for i in ids] == expected
            for i in ids:
                last = engine.outputs[i][-1]
                assert last.n_drafted == last.n_accepted
        sampled = Sampling(seed=5, temperature=1.2)
        assert engine.alone(PROMPTS[2], 60, sampled) == plain.alone(PROMPTS[2], 60, sampled)


def test_a_draft_model_without_room_gives_up(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = native.capture_log()
    with (
        native.opened(ModelOptions(tiny_model, 0), ContextOptions(256, 4, 64, 64, 1), log) as (
            _,
            c,
        ),
        driver(tiny_model) as plain,
        driver(tiny_model, speculator=Speculator(DraftModel(c))) as engine,
    ):
        engine.loop._speculator.costs = Cheap()  # type: ignore[union-attr]
        expected = together(plain, lambda i: GREEDY, 150)  # 4 x 150 and more in 256 cells
        assert together(engine, lambda i: GREEDY, 150) == expected


def test_settings_that_do_not_go_together(tiny_model: Path, pocket: Path, tmp_path: Path) -> None:
    def config(speculation: str, small: Path | None) -> EngineConfig:
        return EngineConfig(tiny_model, "m", speculation=speculation, draft_model=small)

    for bad in (config("draft", None), config("auto", tiny_model), config("often", None)):
        with pytest.raises(ConfigError):
            speculation.check(bad)
    with pytest.raises(ModelMissingError):
        speculation.check(config("draft", tmp_path / "none.gguf"))
    log = native.capture_log()
    options = ContextOptions(256, 2, 64, 64, 1, n_outputs_max=32)
    with native.opened(ModelOptions(tiny_model, 0), options, log) as (model, _):
        pieces = model.pieces()

        def reason(given: EngineConfig) -> tuple[bool, str]:
            with speculation.opened(given, options, model, pieces, log) as (speculator, why):
                return speculator is not None, why

        assert reason(config("off", None)) == (False, "off, as configured")
        is_on, why = reason(config("auto", None))
        assert is_on
        assert why.startswith("prompt lookup: up to 15 tokens")
        is_on, why = reason(config("draft", tiny_model))
        assert is_on
        assert why.startswith("draft model tiny.gguf")
        with pytest.raises(ConfigError, match="tokens, not") as caught:
            reason(config("draft", pocket))
        assert caught.value.hint
        with pytest.raises(ConfigError, match="token 5 is"):
            draft.check(model, [b"?" if i == 5 else p for i, p in enumerate(pieces)], model, "x")
