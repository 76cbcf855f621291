"""Guessing ahead, without a model: what is guessed, what is paid for it, what it may lose."""

from __future__ import annotations

import random
import statistics
from array import array
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_server.engine import speculate
from edgekit_server.engine.costs import StepCosts
from edgekit_server.engine.lookup import AT_ONCE, Lookup, Source
from edgekit_server.engine.speculate import Drafter, Speculator, allot, n_outputs, until


@dataclass
class Asking:
    tokens: array[int]
    limit: int
    key: int = 0
    seq: int | None = 0
    ends: frozenset[int] = frozenset()
    speculate: bool = True
    drafter: Drafter | None = field(default=None)


def lookup(*tokens: int, limit: int = 1000) -> Lookup:
    return Lookup(array("i", tokens), limit)


def test_continues_where_the_last_tokens_were_seen() -> None:
    assert list(lookup(1, 2, 3, 4, 5, 9, 2, 3).draft(3)[0]) == [4, 5, 9]
    assert list(lookup(1, 2, 3, 4, 5, 9, 7, 3).draft(3)[0]) == []
    # the latest of two places, unless a longer n-gram knows better
    assert list(lookup(7, 1, 2, 3, 6, 1, 2, 8, 6, 1, 2).draft(1)[0]) == [8]
    found, source = lookup(5, 6, 7, 1, 2, 3, 9, 1, 2, 8, 6, 7, 1, 2).draft(1)
    assert (list(found), source) == ([3], Source.LONG)


def test_goes_on_periodically_at_the_end() -> None:
    assert list(lookup(1, 2, 3, 1, 2).draft(7)[0]) == [3, 1, 2, 3, 1, 2, 3]
    assert list(lookup(5, 5, 5, 5).draft(4)[0]) == [5, 5, 5, 5]


def test_follows_and_finds_its_place_again() -> None:
    """A token replaced by two others: one token later the cursor is back."""
    tokens = array("i", [*range(10, 40), 1, 10, 11, 12, 13])
    guess = Lookup(tokens, 1000)
    assert list(guess.draft(4)[0]) == [14, 15, 16, 17]
    tokens.extend([14, 15, 16, 17])
    assert guess.draft(3)[1] is Source.FOLLOWED
    tokens.extend([90, 91])  # instead of 18
    assert list(guess.draft(2)[0]) == []
    tokens.append(19)
    found, source = guess.draft(3)
    assert (list(found), source) == ([20, 21, 22], Source.RESUMED)


def test_a_long_prompt_is_indexed_in_pieces() -> None:
    n = 2 * AT_ONCE + 50
    tokens = array("i", [*range(n), 7, 8])
    guess = Lookup(tokens, n + 100)
    assert [len(guess.draft(2)[0]) for _ in range(3)] == [0, 0, 2]


def test_a_context_that_was_cut_is_read_afresh() -> None:
    tokens = array("i", [*range(10, 60), 10, 11])
    guess = Lookup(tokens, 1000)
    assert list(guess.draft(2)[0]) == [12, 13]
    del tokens[5:30]
    assert list(guess.draft(2)[0]) == [12, 13]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=12),
    st.integers(1, 15),
)
def test_only_ever_guesses_what_was_there(
    prompt: list[int], answers: list[list[int]], most: int
) -> None:
    """Every two neighbours of a draft are neighbours in the text, wrapped round or not."""
    tokens = array("i", prompt)
    guess = Lookup(tokens, 1000)
    for answer in answers:
        tokens.extend(answer)
        found, _ = guess.draft(most)
        assert len(found) in (0, most)
        assert set(found) <= set(tokens)
        seen = set(pairwise(tokens))
        breaks = sum(pair not in seen for pair in pairwise(found))
        assert breaks <= most // 2


@pytest.mark.parametrize(
    ("wishes", "cost", "expected"),
    [
        ([(0.9, 15)], 0.0, [15]),  # rows free of charge: all of them
        ([(0.9, 15)], 1.0, [0]),  # a row costs a step: none
        ([(0.9, 15)], 0.5, [3]),
        ([(0.9, 15)], 0.1, [10]),
        ([(0.3, 15)], 0.5, [0]),
        ([(0.9, 3), (0.4, 3)], 0.1, [3, 1]),
        ([(0.9, 3), (0.2, 3)], 0.1, [3, 0]),
        ([], 0.1, []),
    ],
)
def test_rows_go_where_they_bring_most(
    wishes: list[tuple[float, int]], cost: float, expected: list[int]
) -> None:
    n_active = max(1, len(wishes))
    assert allot(wishes, n_active, [cost * n for n in range(49)]) == expected


def test_a_step_in_the_cost_is_seen_past() -> None:
    """A tile of 8 rows costs as much as 2 rows: all of it is used or nothing."""
    stairs = [0.0, *([0.9] * 7), *([2.9] * 8)]
    assert allot([(0.95, 15)], 1, stairs) == [7]
    assert allot([(0.4, 15)], 1, stairs) == [0]


def test_a_draft_models_rounds_are_paid() -> None:
    free = allot([(0.8, 15)], 1, [0.05 * n for n in range(16)])
    paid = allot([(0.8, 15)], 1, [0.05 * n for n in range(16)], 0.2)
    assert 0 < paid[0] < free[0]


def test_costs_are_learned() -> None:
    costs = StepCosts()
    assert costs.seconds(1) == 0.0
    rng = random.Random(1)
    for i in range(400):
        rows = (1, 4, 9, 16)[i % 4]
        # the context grows, so everything slows down
        costs.learn(rows, 0.01 * (1 + i / 400) * (1 + 0.4 * (rows - 1)) * rng.uniform(0.95, 1.05))
    added = costs.added(1, 20)
    for n, expected in ((3, 1.2), (8, 3.2), (15, 6.0), (10, 4.0)):
        assert added[n] == pytest.approx(expected, rel=0.15)
    assert costs.seconds(1) == pytest.approx(0.02, rel=0.2)
    before = added[3]
    costs.learn(4, 5.0)
    assert costs.added(1, 4)[3] < 2 * before


def test_what_is_not_measured_again_is_forgotten() -> None:
    costs = StepCosts()
    costs.learn(1, 0.01)
    costs.learn(8, 10.0)
    costs.learn(8, 10.0)
    high = costs.of(8)
    for _ in range(1300):
        costs.learn(1, 0.01)
    assert costs.of(8) < high


def test_output_rows_are_bounded() -> None:
    assert n_outputs(1, 512) == 16
    assert n_outputs(4, 512) == 4 + 48
    assert n_outputs(32, 512) == 32 + 48
    assert n_outputs(32, 40) == 40
    assert n_outputs(64, 64) == 64


def test_drafts_stop_before_an_end() -> None:
    assert list(until(array("i", [5, 6, 2, 7]), frozenset([2]))) == [5, 6]
    assert list(until(array("i", [2]), frozenset([2]))) == []


def measured() -> Speculator:
    engine = Speculator()
    for rows in (1, 2, 4, 9) * 3:
        engine.settle(rows, 0.01 + 0.001 * rows, [])
    return engine


def test_keeps_within_its_limits() -> None:
    looping = array("i", [5] * 50)
    for limit, room in ((53, 48), (200, 2), (51, 48), (200, 0)):
        request = Asking(array("i", looping), limit)
        drafts = measured().propose([request], room)
        assert sum(map(len, drafts.values())) <= min(room, limit - 51)
    many = [Asking(array("i", looping), 200, key=i) for i in range(speculate.MOST_ACTIVE + 1)]
    assert measured().propose(many, 48) == {}
    assert measured().propose([Asking(looping, 200, speculate=False)], 48) == {}
    assert Speculator().propose([Asking(looping, 200)], 48) == {}, "costs are not known yet"
    assert measured().propose([Asking(looping, 200)], 48)


def play(
    answers: list[list[int]], prompt: list[int], slope: float, seed: int = 0
) -> tuple[float, Speculator]:
    """Replay known answers on a machine where each row more costs `slope` steps; return the
    speed relative to no drafts."""
    rng = random.Random(seed)
    engine = Speculator()
    n, spent = 0, 0.0
    for key, answer in enumerate(answers):
        request = Asking(array("i", [*prompt, answer[0]]), len(prompt) + len(answer) + 1, key=key)
        at = 1
        while at < len(answer):
            draft = engine.propose([request], 48).get(key, array("i"))
            right = 0
            while (
                right < len(draft)
                and at + right < len(answer)
                and draft[right] == answer[at + right]
            ):
                right += 1
            count = min(right + 1, len(answer) - at)
            request.tokens.extend(answer[at : at + count])
            at += count
            n += count
            step = 1 + slope * len(draft)
            spent += step
            fates = [(request.drafter, len(draft), right)] if draft and request.drafter else []
            engine.settle(1 + len(draft), 0.01 * step * rng.lognormvariate(0, 0.1), fates)
    return n / spent, engine


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.2, 0.5, 1.0, 2.0]), st.integers(4, 2000))
def test_never_below_097_on_what_cannot_be_guessed(seed: int, slope: float, n_words: int) -> None:
    """Random tokens of a small vocabulary: matches everywhere, and all by chance."""
    rng = random.Random(seed)
    prompt = [rng.randrange(n_words) for _ in range(300)]
    answers = [[rng.randrange(n_words) for _ in range(128)] for _ in range(4)]
    speed, _ = play(answers, prompt, slope, seed)
    assert speed > 0.97


@pytest.mark.parametrize(("slope", "least"), [(0.05, 5.0), (0.2, 2.8), (0.35, 1.9), (0.5, 1.5)])
def test_copies_with_changes_pay(slope: float, least: float) -> None:
    rng = random.Random(3)
    prompt = [rng.randrange(3000) for _ in range(400)]
    answers = []
    for _ in range(4):
        answer: list[int] = []
        for token in prompt:
            answer += [4000, 4001, 4002] if rng.random() < 0.02 else [token]
        answers.append(answer)
    speeds = [play(answers, prompt, slope, seed)[0] for seed in range(9)]
    assert statistics.median(speeds) > least, speeds


def test_switched_off_when_rows_cost_a_step_each() -> None:
    prompt = list(range(400))
    speed, _ = play([prompt], prompt, 1.2)
    assert speed > 0.97
